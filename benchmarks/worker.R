# lme4 on one problem: Rscript worker.R folder repeats formula reml response,columns factor,columns
args <- commandArgs(trailingOnly = TRUE)
suppressMessages(library(lme4))
columns <- strsplit(args[5], ",")[[1]]
data <- as.data.frame(lapply(setNames(columns, columns), function(name) {
  path <- file.path(args[1], paste0(name, ".f64"))
  readBin(path, "double", n = file.size(path) / 8)
}))
for (name in strsplit(args[6], ",")[[1]]) data[[name]] <- factor(data[[name]])
times <- numeric(0)
for (i in seq_len(as.integer(args[2]) + 1)) {
  elapsed <- system.time(fit <- lmer(as.formula(args[3]), data, REML = args[4] == "1",
    control = lmerControl(calc.derivs = FALSE)))[["elapsed"]]
  times <- c(times, elapsed)
}
deviance <- if (args[4] == "1") REMLcrit(fit) else deviance(fit)
peak <- as.numeric(strsplit(grep("VmHWM", readLines("/proc/self/status"), value = TRUE), " +")[[1]][2]) / 1024
cat(sprintf('{"first": %.6f, "warm": [%s], "deviance": %.10f, "peak_mb": %.1f}\n', times[1],
  paste(sprintf("%.6f", times[-1]), collapse = ", "), deviance, peak))

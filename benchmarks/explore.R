# lme4 on formulas it has not seen: Rscript --vanilla explore.R folder passes begin; see explore.py for the protocol.
args <- commandArgs(trailingOnly = TRUE)
now <- function() as.numeric(Sys.time())
marks <- now()
begin <- as.numeric(args[3])
suppressMessages(library(lme4))
marks <- c(marks, now())
formulas <- readLines(file.path(args[1], "formulas.txt"))
data <- read.csv(file.path(args[1], "data.csv"))
for (name in readLines(file.path(args[1], "factors.txt"))) data[[name]] <- factor(data[[name]])
marks <- c(marks, now())

models <- lapply(formulas, function(text) list(fit = numeric(0), summary = numeric(0)))
fits <- vector("list", length(models))
for (pass in seq_len(as.integer(args[2]))) {
  for (i in seq_along(models)) {
    t0 <- now()
    fits[[i]] <- suppressWarnings(suppressMessages(lmer(as.formula(formulas[i]), data)))
    t1 <- now()
    invisible(capture.output(print(summary(fits[[i]]))))
    models[[i]]$fit <- c(models[[i]]$fit, t1 - t0)
    models[[i]]$summary <- c(models[[i]]$summary, now() - t1)
  }
  if (pass == 1) total <- now() - begin
}
for (i in seq_along(models)) {
  blocks <- unname(lapply(VarCorr(fits[[i]]), function(block) matrix(block, nrow(block)) / sigma(fits[[i]])^2))
  models[[i]] <- lapply(models[[i]], I)
  models[[i]]$relative <- blocks
}
out <- list(boot = marks[1] - begin, "import" = marks[2] - marks[1], read = marks[3] - marks[2], total = total,
            models = models)
cat("\n", jsonlite::toJSON(out, auto_unbox = TRUE, digits = NA), "\n", sep = "")

# One R engine on one problem: Rscript --vanilla worker.R folder engine repeats seconds; see worker.py for the protocol.
args <- commandArgs(trailingOnly = TRUE)
folder <- args[1]
engine <- args[2]
repeats <- as.integer(args[3])
seconds <- as.numeric(args[4])
checked <- 10
slow <- 30
spec <- jsonlite::fromJSON(file.path(folder, "problem.json"), simplifyDataFrame = FALSE)
package <- sub("_.*", "", engine)
suppressWarnings(suppressMessages(library(package, character.only = TRUE)))

raw <- function(name) {
  path <- file.path(folder, paste0(name, ".f64"))
  readBin(path, "double", n = file.size(path) / 8)
}
data <- as.data.frame(lapply(setNames(spec$columns, spec$columns), raw))
for (name in spec$factors) data[[name]] <- factor(data[[name]])
effects <- function(term) ifelse(term$columns == "1", "(Intercept)", term$columns)

memory <- function(field) {
  line <- grep(field, readLines("/proc/self/status"), value = TRUE)
  as.numeric(strsplit(line, "[[:space:]]+")[[1]][2]) / 1024
}

# The covariance of each random term, in the problem's order, from a list named by factor ("dept", "dept.1").
blocks <- function(found) {
  lapply(spec$random, function(term) {
    for (i in seq_along(found)) {
      same <- sub("\\.[0-9]+$", "", names(found)[i]) == term$factor
      if (same && identical(rownames(found[[i]]), effects(term))) return(found[[i]])
    }
    stop("no covariance of ", term$factor)
  })
}

adapters <- list(
  lme4 = list(
    fit = function() {
      lmer(as.formula(spec$formula), data, REML = spec$reml, control = lmerControl(calc.derivs = FALSE))
    },
    relative = function(fit) lapply(blocks(VarCorr(fit)), function(block) block / sigma(fit)^2)
  ),
  nlme = list(
    fit = function() {
      fixed <- as.formula(paste("y ~", paste(c("1", spec$fixed), collapse = " + ")))
      random <- lapply(rev(spec$random), function(term) reformulate(term$columns))
      names(random) <- rev(vapply(spec$random, function(term) term$factor, ""))
      lme(fixed, data, random, method = if (spec$reml) "REML" else "ML")
    },
    relative = function(fit) blocks(pdMatrix(fit$modelStruct$reStruct))
  ),
  glmmTMB = list(
    fit = function() glmmTMB(as.formula(spec$formula), data, REML = spec$reml),
    relative = function(fit) lapply(blocks(VarCorr(fit)$cond), function(block) block / sigma(fit)^2)
  )
)
adapter <- adapters[[package]]
now <- function() as.numeric(Sys.time())
rows <- function(matrices) lapply(matrices, function(m) matrix(as.numeric(m), nrow(m)))

time_fits <- function() {
  times <- numeric(0)
  while (length(times) == 0 || (length(times) <= repeats && sum(times[-1]) < seconds && times[1] < slow)) {
    begin <- now()
    fit <- adapter$fit()
    times <- c(times, now() - begin)
  }
  list(first = times[1], times = I(times[-1]), relative = rows(adapter$relative(fit)))
}

time_refits <- function() {
  responses <- matrix(raw("responses"), nrow = nrow(data))
  begin <- now()
  base <- adapter$fit()
  refit(base, responses[, 1])
  first <- now() - begin
  kept <- list()
  begin <- now()
  for (done in seq_len(ncol(responses))) {
    fit <- refit(base, responses[, done])
    if (done <= checked) kept <- c(kept, fit)
    if (now() - begin > seconds) break
  }
  elapsed <- now() - begin
  relative <- lapply(kept, function(fit) rows(adapter$relative(fit)))
  list(first = first, times = I(elapsed / done), fits = done, relative = relative)
}

# bootMer of one sample, then of as many as the time allows; its samples are its own, so that none are checked.
time_bootmer <- function() {
  samples <- function(fit, n) bootMer(fit, function(m) c(fixef(m), getME(m, "theta"), sigma(m)), nsim = n)
  begin <- now()
  fit <- adapter$fit()
  samples(fit, 1)
  first <- now() - begin
  begin <- now()
  samples(fit, 10)
  n <- min(spec$responses, max(10, round(10 * seconds / (now() - begin))))
  begin <- now()
  samples(fit, n)
  list(first = first, times = I((now() - begin) / n), fits = n, relative = list())
}

try(cat("5", file = "/proc/self/clear_refs"), silent = TRUE)  # the peak counts from here
base_mb <- memory("VmRSS")
out <- suppressWarnings(suppressMessages({
  if (engine == "lme4_bootmer") time_bootmer() else if (spec$responses > 0) time_refits() else time_fits()
}))
version <- list(R = paste(R.version$major, R.version$minor, sep = "."))
version[[package]] <- as.character(packageVersion(package))
version[["BLAS (R)"]] <- basename(La_library())
out <- c(out, list(base_mb = base_mb, peak_mb = memory("VmHWM"), versions = version))
cat("\n", jsonlite::toJSON(out, auto_unbox = TRUE, digits = NA), "\n", sep = "")

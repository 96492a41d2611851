# Writes residual_results.json: what nlme says of fits with residual structures; tests/test_structured_results.py reads it.
# Rscript tests/reference/residual_results.R tests/reference/residual_results.json
library(nlme); library(jsonlite)
tight <- glsControl(tolerance = 1e-12, msTol = 1e-12, msMaxIter = 500, maxIter = 500, opt = "nlminb")
tightl <- lmeControl(tolerance = 1e-12, msTol = 1e-12, msMaxIter = 500, maxIter = 500, opt = "nlminb")
O <- as.data.frame(Orthodont); O$visit <- as.integer((O$age - 8) / 2 + 1)
B <- as.data.frame(BodyWeight); V <- as.data.frame(Ovary)
fits <- list(
  ar1_ident = gls(distance ~ age * Sex, O, correlation = corAR1(form = ~visit | Subject), weights = varIdent(form = ~1 | Sex), control = tight),
  us = gls(distance ~ age * Sex, O, correlation = corSymm(form = ~visit | Subject), weights = varIdent(form = ~1 | visit), control = tight),
  car1 = gls(weight ~ Diet * Time, B, correlation = corCAR1(form = ~Time | Rat), control = tight),
  exp_power = lme(weight ~ Diet * Time, B, random = ~1 | Rat, correlation = corExp(form = ~Time | Rat), weights = varPower(form = ~Time), control = tightl),
  arma = gls(follicles ~ sin(2 * pi * Time) + cos(2 * pi * Time), V, correlation = corARMA(form = ~1 | Mare, p = 1, q = 1), method = "ML", control = tight))
covariance <- function(m, first) {
  R <- if (inherits(m, "lme")) getVarCov(m, individual = first, type = "conditional")[[1]] else getVarCov(m, individual = first)
  unname(unclass(R)[1:4, 1:4])
}
says <- function(m) {
  ci <- intervals(m)
  first <- levels(getGroups(m))[1]
  list(m2ll = as.numeric(-2 * logLik(m)), beta = unname(if (inherits(m, "lme")) fixef(m) else coef(m)), se = unname(sqrt(diag(vcov(m)))),
       sigma = m$sigma, cor = unclass(ci$corStruct), var = unclass(ci$varStruct), sigma_ci = as.vector(ci$sigma),
       pearson = unname(as.vector(resid(m, type = "pearson"))[1:12]), normalized = unname(as.vector(resid(m, type = "normalized"))[1:12]),
       R_subject = as.character(first), R = covariance(m, first),
       acf = if (inherits(m, "lme")) ACF(m, maxLag = 3)$ACF else ACF(m, form = ~1 | getGroups(m), maxLag = 3)$ACF)
}
out <- lapply(fits, function(m) tryCatch(says(m), error = function(e) { print(e); NULL }))
v <- Variogram(fits$car1, form = ~Time, resType = "pearson")
out$car1$variogram <- list(distance = v$dist, semivariance = v$variog, pairs = v$n.pairs)
write_json(out, commandArgs(TRUE)[1], digits = I(12), auto_unbox = TRUE, matrix = "rowmajor")

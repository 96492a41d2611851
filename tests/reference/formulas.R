# Writes formulas.json: model.matrix() of R for right-hand sides that tests/test_formula_r.py builds too.
# Rscript tests/reference/formulas.R tests/reference/formulas.json
library(splines)
n <- 24; i <- 0:(n - 1)
d <- data.frame(
  x = round(sin(1.7 * i + 0.3) * 2 + i / 8, 3), z = round(1 + 4 * ((i * 7) %% 24) / 24 + 0.01 * i, 3),
  k = i %% 4 + 1, f = factor(letters[i %% 3 + 1]), g = factor(c("u", "v")[(i %/% 3) %% 2 + 1]),
  b = i %% 5 < 2, t = c("n", "s", "w")[(i * 5) %% 3 + 1],
  o = factor(c("lo", "mid", "hi")[i %% 3 + 1], levels = c("lo", "mid", "hi"), ordered = TRUE),
  day = as.Date("2024-02-27") + i, stringsAsFactors = FALSE)
d$y <- round(cos(2.3 * i) + d$x / 3, 3)
new <- d[c(2, 9, 17), ]; new$x <- c(-5, 1.25, 9); new$z <- c(0.2, 3, 7)
sides <- c(
  "I(k %% 3)", "I(k %/% 2)", "x %% 2", "pmin(x, 1) + pmax(x, z)", "ifelse(x > 0, 1, -1)", 'ifelse(x > 0, "pos", "neg")',
  "ifelse(b, x, z)", 'ifelse(t == "n", "north", t)', "cut(x, c(-3, 0, 1, 5))", "cut(x, 3)", "cut(z, c(1, 2, 4, 6), right = FALSE)",
  "cut(k, c(1, 2, 4), include.lowest = TRUE)", "cut(x, 3, labels = FALSE)", 'cut(x, c(-3, 0, 5), labels = c("low", "high"))',
  "cut(x, 4, dig.lab = 2)", "cut(x, c(-Inf, 0, Inf))", "cut(k, 3, ordered_result = TRUE)",
  "ns(x, df = 3)", "ns(x, df = 1)", "ns(x, knots = c(0, 1))", "ns(x, df = 4, intercept = TRUE) - 1", "ns(x, knots = 1, Boundary.knots = c(-1, 3))",
  "splines::ns(z, 2)", "bs(x, df = 5)", "bs(x, knots = c(0, 1))", "bs(x, df = 4, Boundary.knots = c(-6, 10))", "bs(x, knots = 1, degree = 2)",
  "bs(x)", "bs(x, df = 4, Boundary.knots = c(-1, 3))", "bs(x, df = 5, degree = 1, intercept = TRUE) - 1",
  "interaction(f, g)", 'interaction(f, g, sep = "_")', "interaction(f, g, lex.order = TRUE)", "interaction(f, g, t)", "paste(f, g)", 'paste0(f, "-", k)', 'paste(t, b, sep = ":")',
  "poly(x, 2)", "poly(x, 4)", "poly(x, 2, raw = TRUE)", "poly(x, degree = 1)", "scale(x)", "scale(x, scale = FALSE)", "scale(x, center = FALSE)", "scale(x, 1, 2)",
  "rev(x)", "abs(x) + round(z, 1) + floor(x) + ceiling(x) + trunc(x)", "sqrt(z) + exp(x) + log(z) + log2(z) + log10(z) + log1p(z) + expm1(x) + log(z, 3)",
  "as.numeric(f)", "as.integer(o)", "as.numeric(as.character(k))", "as.factor(k)", "as.character(k)", 'factor(t, levels = c("w", "n", "s"))',
  'factor(k, labels = c("p", "q", "r", "s"))', 'relevel(f, "b")', 'relevel(factor(t), ref = "s")', "x > 0", "(x > 0) * f", "I(x > 0):f", "x > 0 & z > 2", "!(x > 0)",
  'I("b" == f)', 'I(f %in% c("a", "c"))', "I(k %in% c(1, 4))", 'I(o > "lo")', 'I(o <= "mid")', 'f != "a"', "f == g", "x == max(x)",
  "a1 + (b1 - a1)", "a1 + b1 + x - (b1 - x)", "a1 - (b1 - 1)", "x - 1 + 1", "(a1 * b1 + f)^2", "(x + b1 * z + f)^2", "(f + g + x)^3", "(a1 + b1)^9", "x %in% (f + g)", "f / (g + t)", "x / f / g",
  "I(x * 0.10 + 1e5)", "I(x/1e-4)", "I(x - 100000)", "I(x^2 + 3L)", "-x", "((x + z))", "I(((x) + z))", "plogis(x) + qlogis(z / 10)", "I(x + poly(z, 2))", "seq(1, 24)", "as.numeric(day)", "I(as.numeric(day) > 19785)",
  "quantile(x, 0.25):x", "o", "o * x", "x*y", "y + x", "f:x + f", "x:z:f", "tanh(x) + atan(x) + sign(x)", "pmin(x, z, 2)", 'I(t == "n" | t == "w")')
d$a1 <- d$x^2; d$b1 <- d$z * d$x; new$a1 <- 1; new$b1 <- 2
num <- function(m) lapply(seq_len(ncol(m)), function(j) as.numeric(m[, j]))
quote_ <- function(s) paste0('"', gsub('"', '\\\\"', gsub('\\\\', '\\\\\\\\', s)), '"')
arr <- function(v) paste0("[", paste(v, collapse = ", "), "]")
nums <- function(v) arr(ifelse(is.na(v), "null", sprintf("%.15g", v)))
options(warn = -1)
lines <- c()
for (s in sides) {
  e <- tryCatch({
    tt <- terms(as.formula(paste("y ~", s)), data = d)
    mf <- model.frame(tt, d); m <- model.matrix(tt, mf)
    p <- tryCatch({
      mn <- model.frame(delete.response(terms(mf)), new, na.action = na.pass, xlev = .getXlevels(terms(mf), mf))
      model.matrix(delete.response(terms(mf)), mn)
    }, error = function(e) NULL)
    paste0(quote_(s), ': {"names": ', arr(quote_(colnames(m))), ', "values": ', arr(sapply(num(m), nums)),
           if (!is.null(p) && ncol(p) == ncol(m)) paste0(', "new": ', arr(sapply(num(p), nums))), "}")
  }, error = function(e) { message(s, ": ", conditionMessage(e)); NULL })
  lines <- c(lines, e)
}
cols <- sapply(c("y", "x", "z", "k", "a1", "b1"), function(v) paste0(quote_(v), ": ", nums(d[[v]])))
txt <- sapply(c("f", "g", "t", "o", "day"), function(v) paste0(quote_(v), ": ", arr(quote_(as.character(d[[v]])))))
bool <- paste0('"b": ', arr(tolower(d$b)))
nc <- sapply(c("y", "x", "z", "k", "a1", "b1"), function(v) paste0(quote_(v), ": ", nums(new[[v]])))
nt <- sapply(c("f", "g", "t", "o", "day"), function(v) paste0(quote_(v), ": ", arr(quote_(as.character(new[[v]])))))
nb <- paste0('"b": ', arr(tolower(new$b)))
out <- c("{", paste0('"data": {', paste(c(cols, txt, bool), collapse = ",\n"), "},"), paste0('"new": {', paste(c(nc, nt, nb), collapse = ",\n"), "},"),
         '"matrices": {', paste(lines, collapse = ",\n"), "}", "}")
writeLines(out, commandArgs(TRUE)[1])

"""Many fits in one call: responses, formulas, data sets, bootstrap samples."""

"""Structured residual errors: V_i = Z_iΨZ_iᵀ + D_iC_iD_i in blocks of dependent rows. NumPy."""

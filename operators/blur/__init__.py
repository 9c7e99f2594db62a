"""Linear and nonlinear blurs."""

"""What the notebooks share: data, models, training, sweeps, claims, figures and the notebook runner."""

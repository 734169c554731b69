"""What users call: estimators, cross-validation, paths, certificates of any network."""

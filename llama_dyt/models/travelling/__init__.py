"""What stands in a saved model's folder for modules of this package that do not travel. Never imported here."""

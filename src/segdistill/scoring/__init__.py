"""Label losses, evaluation, the confusion matrix and the record of val."""

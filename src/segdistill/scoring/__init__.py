"""What predictions are worth: classes and loss of every pixel, the confusion matrix, what follows from it."""

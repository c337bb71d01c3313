"""What is learnt: a task gives the loss, the measures and the predictions."""

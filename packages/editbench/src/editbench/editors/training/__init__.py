"""What editors that train weights share: the loss, its fast paths, the steps."""

"""Networks: torchvision's classifiers, ResNets of any width, and the users' own, all with `features` and `head`."""

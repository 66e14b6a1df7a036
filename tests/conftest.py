import torch

# The networks of the tests are so small that a second thread only costs.
torch.set_num_threads(1)

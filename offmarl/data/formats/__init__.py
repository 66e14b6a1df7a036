"""Other people's datasets: each format is read as blocks of whole episodes, and written from them."""

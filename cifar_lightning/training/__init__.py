"""The network as a LightningModule, the data as a DataModule, and what a Trainer needs to train them."""

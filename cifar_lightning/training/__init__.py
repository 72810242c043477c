"""The network as a LightningModule, the data as a DataModule, and everything the Trainer needs to train them."""

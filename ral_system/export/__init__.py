"""A trained model to share: a folder that other libraries load, with a card that says how it was made."""

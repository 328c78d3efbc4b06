"""What the system knows of each family of vision-language models. Everything that differs between families is here."""

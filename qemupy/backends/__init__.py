"""The host side: chardevs, block images. A backend sees bytes, never guest addresses."""

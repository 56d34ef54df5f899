"""One file a norm, light: what it needs of torch it imports where it builds."""

"""The sampling dynamics, one file each. Import the one you want; the specs are in `flowfactory.builtin`."""

"""The door itself: finding the verb, its options, what is printed."""

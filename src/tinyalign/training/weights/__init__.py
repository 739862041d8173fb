"""The weights themselves: built, loaded, frozen, adapted, averaged, saved, checkpointed."""

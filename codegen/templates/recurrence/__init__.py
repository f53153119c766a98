"""The recurrence template: all steps of a recurrent layer in one launch."""

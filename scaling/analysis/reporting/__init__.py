"""What a reader of a report sees: the answer, warnings with remedies, figures, the page and its words."""

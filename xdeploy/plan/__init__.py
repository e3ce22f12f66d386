"""Planning: every compression decision, made from relevance, before anything is changed."""

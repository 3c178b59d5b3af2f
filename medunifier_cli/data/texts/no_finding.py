"""The class of a film that shows nothing of what is asked, and the sentence that stands for it."""

NO_FINDING = "No Finding"
NO_FINDING_PROMPT = "No acute cardiopulmonary abnormality."

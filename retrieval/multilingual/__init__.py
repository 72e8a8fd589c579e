"""Chinese (and 100 other languages) by multilingual-e5-small, with its upper blocks tuned on questions and answers."""

"""Parts that a newcomer might add, each a file of at most 40 lines; ``training/test_exam.py`` trains them."""

"""Answers to one question of four options, each with the letter that training rewards and the one that benchmarks read.

Training reads strictly; where it reads none, benchmarks without a rule of their own go by the option's text, then by
MMMU's rule.
"""

OPTIONS = ("a dog", "A man", "red", "blue")

LETTERS: tuple[tuple[str, str | None, str | None], ...] = (
    *(
        (answer, "B", "B")
        for answer in (
            *(
                "B",
                "b",
                " B. ",
                "(B)",
                "(b).",
                "[B]",
                "**B**",
                r"\text{B}",
                r"\boxed{B}",
                r"$\boxed{\text{B}}$",
                r"\(B\)",
            ),
            *("B. A man", "B) A man", "B: A man", "**B.** A man", "(B) A man", "[B] A man", "B, A man"),
            *(r"\(B\)", "B - A man", "B — A man", "B\nA man", "b. a man", r"\boxed{\text{B. A man}}"),
            *("B. I think it is the man", "B. Vitamin C", "B: vitamin A", "B. J. K. Rowling", "B. plan A"),
            *("B. Dr. Smith and Mr. Jones, or C3PO", "B. Both A and C", "B. either A or C", "B. A and C"),
            *("Option B", "Option B: cotton", "Answer: B", "Answer: b", "answer:B", "**Answer:** B"),
            *("The answer is B. A man", "The answer is **B**: it is a man", "the correct option is (B)"),
            *(
                "The answer is B because of A",
                "The answer is B, a man",
                "B, because it is red",
                r"The answer is B. \boxed{B}",
            ),
            *("It's B", "it is B.", "B is correct", "(B) is the right answer", "So B is right", "I choose B"),
            *(
                "The answer must be B",
                "Therefore, B.",
                "The correct one is B",
                "option b is correct",
                r"\boxed{B, a man}",
            ),
            *("B. Option A is too small", "B is correct; option A is too small"),
            *("The answer is B, as option A is too small", "It must be B because A is a dog"),
            *("B because the man is tall", r"A is what I thought, but it has to be \boxed{\text{B}}"),
        )
    ),
    ("A or B", None, "B"),
    ("A, B", None, "B"),
    ("A and B", None, "B"),
    ("A, b", None, None),
    ("a, b, c, d", None, None),
    ("A. B. C.", None, "B"),
    ("A. red, or B", None, "A"),
    ("C) red; D) blue", None, "D"),
    ("A, but maybe B", None, "B"),
    (r"The answer is B. \boxed{A}", "A", "A"),
    # two letters, or a letter that the text rejects: benchmarks take the last
    ("(C) red, or (D)", None, "D"),
    ("Either option A or option B", None, "B"),
    ("the answer is A, B", None, "B"),
    ("The answer is A or B", None, "B"),
    ("Answer: (B) or (C)", None, "C"),
    ("Answer: B/C", None, None),
    ("The answer is A? No, it is B", None, "B"),
    ("Between (A) and (C), the answer is B", None, "C"),
    ("A is wrong, B is right", None, "B"),
    ("(A) is wrong. (B) is right.", None, "B"),
    ("option A is incorrect; it is B", None, "B"),
    ("It is not option A", None, "A"),
    ("B is not correct", None, "B"),
    # words
    ("a (blue) car", None, None),
    ("a.m.", None, None),
    ("e.g. dogs", None, None),
    ("i.e., the dog", None, None),
    ("U.S. flag", None, None),
    ("A man", None, "B"),
    ("a man.", None, "B"),
    ("blue", None, "D"),
    ("A red ball", None, None),
    ("The answer is A man", None, None),
    ("It is B-flat", None, None),
    ("I do not know", None, None),
    ("from the USA.", None, None),
    ("12", None, None),
    ("", None, None),
)

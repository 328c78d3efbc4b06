"""Answers to one question of four options, each with the letter that training rewards and the one that benchmarks read.

Training rewards none where two letters are named; benchmarks without a rule of their own then go by MMMU's.
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
            *("B. A man", "B) A man", "B: A man", "**B.** A man", "(B) A man", "[B] A man", "B (A man)"),
            *(r"\(B\)", "B - A man", "B — A man", "B\nA man", "b. a man", r"\boxed{\text{B. A man}}"),
            *("B. I think it is the man", "B. Vitamin C", "B: vitamin A", "B. J. K. Rowling", "B. plan A"),
            *("B. Dr. Smith and Mr. Jones, or C3PO", "B. Both A and C", "B. either A or C", "B. A and C"),
            *("Option B", "Option B: cotton", "Answer: B", "Answer: b", "answer:B", "**Answer:** B"),
            *("The answer is B. A man", "The answer is **B**: it is a man", "the correct option is (B)"),
            *("The answer is B because of A", "The answer is B, a man", r"The answer is B. \boxed{B}"),
            *("It's B", "it is B.", "B is correct", "(B) is the right answer", "Between (A) and (C), the answer is B"),
            *("option A is incorrect; it is B", "The answer is not A. It is B", "A. no, the answer is B"),
            *("B because the man is tall", r"A is what I thought, but it has to be \boxed{\text{B}}"),
        )
    ),
    ("A or B", None, "B"),
    ("A, B", None, "B"),
    ("A and B", None, "B"),
    ("A, b", None, None),
    ("a, b, c, d", None, None),
    ("B, A man", None, None),
    ("A. B. C.", "A", "A"),
    ("A. red, or B", "A", "A"),
    ("A. red or B. A man", "A", "A"),
    ("C) red; D) blue", "C", "C"),
    ("A, but maybe B", None, "B"),
    ("(C) red, but maybe (D)", "C", "C"),
    ("The answer is A? No, it is B", None, "B"),
    ("The answer is A or B", None, "B"),
    ("the answer is A, B", "A", "A"),
    (r"The answer is B. \boxed{A}", "A", "A"),
    ("A man", None, "B"),
    ("a man.", None, "B"),
    ("blue", None, "D"),
    ("A red ball", None, None),
    ("The answer is A man", None, None),
    ("It is B-flat", None, None),
    ("I, Claudius", None, None),
    ("I do not know", None, None),
    ("from the USA.", None, None),
    ("12", None, None),
    ("", None, None),
)

"""``ganlab bench``: how fast training and scoring are on this machine, beside a plain loop's."""

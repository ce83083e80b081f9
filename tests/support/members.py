"""Solves without some members of the portfolio."""

from cspsched.exact import portfolio


def leave_out(monkeypatch, *members):
    """Take the rows of some members out of the portfolio."""
    kept = [row for row in portfolio.PORTFOLIO if row.make not in members]
    monkeypatch.setattr(portfolio, "PORTFOLIO", kept)

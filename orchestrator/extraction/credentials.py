"""Texts that look as if they held a credential. Such a text is never kept: a memory is told to models again and again.

It errs on the side of finding one: a memory that is lost costs a question, a password that is kept may cost an account.
"""

from __future__ import annotations

import re
from typing import Final

# Each takes linear time.
_SHAPES: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,40}KEY"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\."  # a JWT
    r"|\b(?:sk|pk|rk|lh|ghp|gho|ghs|github_pat|glpat|xox[a-z]|hf|npm|pypi|AIza|AKIA|ASIA)[-_]?[A-Za-z0-9_-]{16,}"
    r"|\b[a-z][a-z0-9+.-]{1,20}://[^\s/@:]{1,200}:[^\s/@]{1,200}@"  # a password in an address
    r"|\[redacted\]",
    re.IGNORECASE,
)
_NAMED: Final = re.compile(
    r"\b(?:pass(?:word|phrase|code|wd)|pwd|pin(?: code| number)?|secret(?: key)?|api[ _-]?key|access[ _-]?(?:key|token)"
    r"|private[ _-]?key|(?:auth|bearer|login|session)[ _-]?token|token|credentials?|cvv|cvc|security code|recovery code"
    r"|one-time code|otp)\b"
    r"[^.\n]{0,60}?(?:\bis\b|\bare\b|\bwas\b|[:=])\s*[\"'“‘`]?\S*[^\s\"'”’`.,]"
    r"|\b(?:passwor[dt]|passwd|passphrase|passcode|pwd|pin|mot de passe|contraseña|senha|пароль|kennwort|wi-?fi key)\b"
    r"(?:[^.\n]{0,40}?\b(?=[^\W\d]*\d)\w{4,}|\s*[:=]\s*\S)"
    r"|\b(?=[^\W\d]+\d)\w{4,}\b[^.\n]{0,10}\bas (?:\w+ )?(?:password|passphrase|passcode|pin)\b"
    r"|(?:密码|口令|密钥|令牌|验证码|パスワード|비밀번호)[^。\n]{0,30}?(?:[是为:：=]|は)\s*\S",
    re.IGNORECASE,
)
_LONG_TOKEN: Final = re.compile(r"[A-Za-z0-9+/_=-]{24,}")
_CARD: Final = re.compile(r"\b\d(?:[ -]?\d){12,18}\b")
_LEAST_DIGITS: Final = 4


def holds_credential(text: str) -> bool:
    """Whether `text` may hold a password, a key, a token or the number of a card."""
    if _SHAPES.search(text) or _NAMED.search(text):
        return True
    if any(_is_random(token) for token in _LONG_TOKEN.findall(text)):
        return True
    return any(_is_card(number) for number in _CARD.findall(text))


def _is_random(token: str) -> bool:
    """Long, of both cases and with digits among them: no word and no path looks so."""
    digits = sum(character.isdigit() for character in token)
    return (
        digits >= _LEAST_DIGITS
        and any(character.isupper() for character in token)
        and any(character.islower() for character in token)
    )


def _is_card(number: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1)."""
    digits = [int(character) for character in number if character.isdigit()]
    total = sum(digits[-1::-2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return total % 10 == 0

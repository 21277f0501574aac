"""Sends several mails over one connection: smtp_client.py HOST PORT"""

import smtplib
import sys

host, port = sys.argv[1:]
with smtplib.SMTP(host, int(port), timeout=200) as smtp:
    assert smtp.ehlo()[0] == 250
    assert smtp.noop()[0] == 250
    lines = "".join(f"{'x' * 70} {port}\r\n" for _ in range(50_000))
    for text in [f"first to port {port}", lines, f"third to port {port}"]:
        assert smtp.sendmail("a@example.com", ["b@example.com"], f"Subject: from Python\r\n\r\n{text}\r\n") == {}
    smtp.rset()
    try:
        smtp.sendmail("a@example.com", ["b@example.com"], "\r\n", rcpt_options=["NONSENSE=yes"])
        raise AssertionError("nonsense was accepted")
    except smtplib.SMTPRecipientsRefused as refused:
        assert refused.recipients["b@example.com"][0] == 501, refused

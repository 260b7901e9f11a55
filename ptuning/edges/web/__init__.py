"""The web page: its layout (``page.py``, the only file that knows gradio's components), the answers to its questions
(``answers.py``) and its sessions, what protects it (``allowlist.py``, ``security_headers.py``), and the dispatcher that puts
page and API at one address."""

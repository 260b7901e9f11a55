"""The web page: visits and their answers, texts in two languages, the reports, the page itself, and one address for page and
API. Only ``page.py`` knows gradio."""

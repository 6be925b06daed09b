"""A page of the report, taken apart for its tests."""

import html.parser

from jobs.report.page import write_report

VOID = {"meta", "input", "br", "img", "hr", "link"}


class Page(html.parser.HTMLParser):
    """A page taken apart: elements with their attributes and texts; fails on tags that do not nest."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.source = path.read_bytes().decode("utf-8")
        self.elements, self._open = [], []
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": ""}
        assert len(dict(attrs)) == len(attrs), attrs
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "attrs": dict(attrs), "text": ""})

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attrs):
        attrs = {name.rstrip("_"): value for name, value in attrs.items()}
        return [e for e in self.elements if e["tag"] == tag and attrs.items() <= e["attrs"].items()]

    def texts(self, tag, **attrs):
        return [" ".join(e["text"].split()) for e in self.all(tag, **attrs)]

    def tiles(self):
        return dict(zip(self.texts("dt"), self.texts("dd"), strict=True))


def page_maker(folder):
    """Give a function that writes the report of a run to `folder` and takes it apart."""
    return lambda run, **options: Page(write_report(run, output=folder / "page.html", **options))

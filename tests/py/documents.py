"""Documents as other people's programs write them.

    documents.py make FOLDER       writes one file of each format, and hostile ones
    documents.py book FILE PAGES   writes a PDF book with an outline; page N says "The code of chapter N is NNNN"
"""
import csv
import random
import sys
import zipfile
from datetime import date
from email.message import EmailMessage
from pathlib import Path

import openpyxl
from docx import Document
from pptx import Presentation
from pptx.util import Inches
from reportlab.lib.pagesizes import A4
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen import canvas
from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate


def word(path):
    document = Document()
    document.add_heading("Travel handbook", 0)
    document.add_heading("Trains", 1)
    document.add_paragraph("Employees travel second class. First class needs the consent of Ms Okonkwo.")
    document.add_heading("Hotels", 1)
    document.add_heading("Limits", 2)
    table = document.add_table(rows=1, cols=3)
    for cell, text in zip(table.rows[0].cells, ("City", "Night", "Breakfast")):
        cell.text = text
    for row in (("Lisbon", "140 EUR", "included"), ("Oslo", "210 EUR", "extra"), ("Kraków", "95 EUR", "included")):
        for cell, text in zip(table.add_row().cells, row):
            cell.text = text
    document.add_page_break()
    document.add_heading("住宿", 1)
    document.add_paragraph("在北京，每晚住宿费不得超过八百元人民币。")
    document.save(path)


def sheet(path):
    book = openpyxl.Workbook()
    page = book.active
    page.title = "Prices"
    page.append(["Price list of spring"])
    page.append(["Article", "Price", "Since", "Stock"])
    page.append(["Copper kettle", 39.5, date(2026, 3, 1), True])
    page.append(["Walnut tray", 18, date(2025, 11, 20), False])
    other = book.create_sheet("Suppliers")
    other.append(["Name", "Town"])
    other.append(["Hammerschmied & Söhne", "Solingen"])
    # A single far cell: a table in memory would have 17 milliards of cells.
    other["XA900000"] = "far away"
    book.save(path)


def slides(path):
    show = Presentation()
    first = show.slides.add_slide(show.slide_layouts[1])
    first.shapes.title.text = "Migration plan"
    first.placeholders[1].text = "Phase one moves the archive to Rotterdam."
    second = show.slides.add_slide(show.slide_layouts[5])
    second.shapes.title.text = "Budget"
    table = second.shapes.add_table(3, 2, Inches(1), Inches(2), Inches(6), Inches(2)).table
    for row, cells in enumerate((("Item", "Cost"), ("Racks", "12,000"), ("Cables", "800"))):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    second.notes_slide.notes_text_frame.text = "Mention the discount of Ferreira."
    show.save(path)


def pdf(path, password=None):
    lock = StandardEncryption(password, canPrint=0) if password else None
    page = canvas.Canvas(str(path), pagesize=A4, encrypt=lock)
    for title, text in (
        ("Warranty", "The warranty of the kettle lasts thirty months."),
        ("Returns", "Goods can be returned within nineteen days."),
    ):
        page.bookmarkPage(title)
        page.addOutlineEntry(title, title, 0)
        page.setFont("Helvetica-Bold", 18)
        page.drawString(72, 760, title)
        page.setFont("Helvetica", 11)
        page.drawString(72, 720, text)
        page.showPage()
    page.save()


def chinese_pdf(path):
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    page = canvas.Canvas(str(path), pagesize=A4)
    page.setFont("STSong-Light", 14)
    page.drawString(72, 760, "员工手册")
    page.drawString(72, 720, "年假为十五天，须提前两周申请。")
    page.save()


def mail(path):
    message = EmailMessage()
    message["From"] = "Ada Novak <ada@example.org>"
    message["To"] = "purchasing@example.org"
    message["Subject"] = "Delivery of the lathe"
    message["Date"] = "Tue, 03 Mar 2026 09:15:00 +0100"
    message.set_content("The lathe arrives on Thursday at gate seven.\n\nRegards\nAda")
    message.add_attachment("Part,Weight\nSpindle,18 kg\nBed,240 kg\n".encode(), maintype="text", subtype="csv",
                           filename="parts.csv")
    message.add_attachment(b"\x89PNG\r\n", maintype="image", subtype="png", filename="photo.png")
    path.write_bytes(bytes(message))


HTML = """<!doctype html><html><head><title>Canteen</title><style>p { color: red }</style>
<script>var secret = "<p>not a paragraph</p>";</script></head><body><h1>Canteen</h1>
<p>Lunch is served from <b>11:40</b> to 13:30.<h2>Prices</h2>
<table><tr><th>Dish</th><th>Price</th></tr><tr><td>Goulash</td><td>7.20</td></tr><tr><td>Soup<td>3.10</table>
<ul><li>Cards only</li><li>No tips</ul></body></html>"""

MARKDOWN = """---
title: ignored
---
# Runbook

## Restart

1. Drain the *node*.
2. Run `systemctl restart millrace`.

| Host | Role |
|---|---|
| heron | primary |
| plover | standby |
"""


def locked_office(path):
    """The head of an OLE container that names the stream of a locked package."""
    path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504) + "EncryptedPackage".encode("utf-16-le") + bytes(512))


def bomb(path, source):
    """An office file whose main part unpacks to half a GiB from half a MiB."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for entry in old.infolist():
            if entry.filename == "word/document.xml":
                with new.open(entry.filename, "w", force_zip64=True) as part:
                    part.write(b"<w:document xmlns:w='w'><w:body><w:p><w:r><w:t>")
                    for _ in range(512):
                        part.write(b"a" * (1 << 20))
                    part.write(b"</w:t></w:r></w:p></w:body></w:document>")
            else:
                new.writestr(entry, old.read(entry.filename))


def nested(path, source):
    """An office file with elements a hundred thousand deep."""
    depth = 100_000
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename == "word/document.xml":
                new.writestr(entry.filename, "<w:document xmlns:w='w'>" + "<w:p>" * depth + "</w:p>" * depth + "</w:document>")
            else:
                new.writestr(entry, old.read(entry.filename))


def damaged(path, source, seed):
    """A file with bytes overwritten and its end cut off."""
    data = bytearray(source.read_bytes())
    source = random.Random(seed)
    for _ in range(40):
        data[source.randrange(len(data))] = source.randrange(256)
    path.write_bytes(bytes(data[: len(data) * 9 // 10]))


def make(folder):
    folder = Path(folder)
    word(folder / "travel.docx")
    sheet(folder / "prices.xlsx")
    slides(folder / "plan.pptx")
    pdf(folder / "terms.pdf")
    chinese_pdf(folder / "leave.pdf")
    mail(folder / "lathe.eml")
    (folder / "canteen.html").write_text(HTML)
    (folder / "runbook.md").write_text(MARKDOWN)
    (folder / "note.txt").write_bytes("钥匙在三楼的柜子里。\n\n备用钥匙由门卫保管，需要登记后领取。".encode("gb18030"))
    with open(folder / "staff.csv", "w", newline="") as out:
        rows = csv.writer(out, delimiter=";")
        rows.writerow(["Name", "Room", "Phone"])
        for number in range(300):
            rows.writerow([f"Person {number}", f"R{number:03}", f"555-{number:04}"])
    hostile = folder / "hostile"
    hostile.mkdir()
    pdf(hostile / "locked.pdf", password="secret")
    locked_office(hostile / "locked.docx")
    bomb(hostile / "bomb.docx", folder / "travel.docx")
    nested(hostile / "nested.docx", folder / "travel.docx")
    damaged(hostile / "broken.pdf", folder / "terms.pdf", 7)
    damaged(hostile / "broken.xlsx", folder / "prices.xlsx", 8)
    (hostile / "empty.txt").write_bytes(b"  \n")
    (hostile / "program.exe").write_bytes(b"MZ")
    (hostile / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")


def book(file, pages):
    style = getSampleStyleSheet()
    words = "river stone lantern meadow harbour copper thistle walnut ember orchard granite willow".split()
    source = random.Random(5)
    story = []
    for number in range(1, int(pages) + 1):
        story.append(Paragraph(f"Chapter {number}", style["Heading1"]))
        story.append(Paragraph(f"The code of chapter {number} is {number * 37 + 1000}.", style["BodyText"]))
        for _ in range(1):
            text = " ".join(source.choice(words) for _ in range(40))
            story.append(Paragraph(text.capitalize() + ".", style["BodyText"]))
        story.append(PageBreak())

    class Book(SimpleDocTemplate):
        def afterFlowable(self, flowable):
            if getattr(flowable, "style", None) is not None and flowable.style.name == "Heading1":
                title = flowable.getPlainText()
                self.canv.bookmarkPage(title)
                self.canv.addOutlineEntry(title, title, 0)

    Book(str(file), pagesize=A4).build(story)


{"make": make, "book": book}[sys.argv[1]](*sys.argv[2:])

//! The samples were written by python-docx, openpyxl, python-pptx, ReportLab and Python's `email`
//! (`tests/py/documents.py make`).

use super::*;
use proptest::prelude::*;
use std::path::Path;

fn sample(name: &str) -> Result<Document, DocumentError> {
    let path = Path::new("../tests/data/documents").join(name);
    read(name, &std::fs::read(path).expect("the sample is there"))
}

/// One token a word: sizes are easy to see.
fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

fn cut(document: &Document) -> Vec<Passage> {
    passages(&document.blocks, 60, &words)
}

/// `citation: text` of every passage.
fn shown(name: &str) -> Vec<String> {
    let document = sample(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    cut(&document).iter().map(|passage| format!("{}: {}", passage.citation(), passage.text)).collect()
}

#[test]
fn a_word_file_gives_headings_tables_and_pages() {
    assert_eq!(
        shown("travel.docx"),
        [
            "page 1, Trains: Employees travel second class. First class needs the consent of Ms Okonkwo.",
            "page 1, Hotels > Limits: City | Night | Breakfast\nLisbon | 140 EUR | included\nOslo | 210 EUR | extra\n\
             Kraków | 95 EUR | included",
            "page 2, 住宿: 在北京，每晚住宿费不得超过八百元人民币。",
        ]
    );
}

#[test]
fn a_workbook_gives_rows_with_their_head_and_number() {
    assert_eq!(
        shown("prices.xlsx"),
        [
            "sheet Prices: Price list of spring",
            "sheet Prices, rows 3-4: Article | Price | Since | Stock\nCopper kettle | 39.5 | 2026-03-01 | true\n\
             Walnut tray | 18 | 2025-11-20 | false",
            "sheet Suppliers, rows 2-900000: Name | Town\nHammerschmied & Söhne | Solingen\n|  |  | … | far away",
        ]
    );
}

#[test]
fn a_presentation_gives_slides_with_titles_tables_and_notes() {
    assert_eq!(
        shown("plan.pptx"),
        [
            "slide 1, Migration plan: Phase one moves the archive to Rotterdam.",
            "slide 2, Budget: Item | Cost\nRacks | 12,000\nCables | 800",
            "slide 2, Budget: Mention the discount of Ferreira.",
        ]
    );
}

#[test]
fn a_pdf_gives_pages_and_the_headings_of_its_outline() {
    assert_eq!(
        shown("terms.pdf"),
        [
            "page 1, Warranty: The warranty of the kettle lasts thirty months.",
            "page 2, Returns: Goods can be returned within nineteen days.",
        ]
    );
    let leave = shown("leave.pdf").join("\n");
    assert!(leave.contains("员工手册") && leave.contains("年假为十五天，须提前两周申请。"), "{leave}");
}

#[test]
fn a_mail_gives_who_and_when_its_text_and_its_attachments() {
    let document = sample("lathe.eml").expect("readable");
    let text: Vec<String> =
        cut(&document).iter().map(|passage| format!("{}: {}", passage.citation(), passage.text)).collect();
    let text = text.join("\n");
    for part in
        ["Delivery of the lathe: From: Ada Novak <ada@example.org>", "2026-03-03", "at gate seven", "Regards Ada"]
    {
        assert!(text.replace("Regards\nAda", "Regards Ada").contains(part), "{part}: {text}");
    }
    assert!(text.contains("Attachment parts.csv: Part | Weight\nSpindle | 18 kg\nBed | 240 kg"), "{text}");
    assert_eq!(document.notes, ["the attachment \"photo.png\" is no format that is read"]);
}

#[test]
fn text_is_read_in_the_encoding_it_has() {
    assert_eq!(shown("note.txt"), [": 钥匙在三楼的柜子里。\n备用钥匙由门卫保管，需要登记后领取。"]);
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain("Grüße".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    assert_eq!(read("a.txt", &utf16).expect("readable").blocks, [Block::Text("Grüße".into())]);
}

#[test]
fn a_web_page_gives_what_a_reader_sees() {
    let page = br#"<title>Canteen</title><style>p{}</style><script>"<p>hidden</p>"</script><h1>Canteen</h1>
        <p>Lunch from <b>11:40</b><br>to 13:30.<h2>Prices</h2>
        <table><tr><th>Dish</th><th>Price</th></tr><tr><td>Goulash &amp; bread</td><td></td></tr><tr><td>Soup<td>3.10</table>
        <ul><li>Cards only</li><li>No tips</ul>"#;
    let document = read("a.html", page).expect("readable");
    let shown: Vec<String> = cut(&document).iter().map(|p| format!("{}: {}", p.citation(), p.text)).collect();
    assert_eq!(
        shown,
        [
            "Canteen: Lunch from 11:40\nto 13:30.",
            "Canteen > Prices: Dish | Price\nGoulash & bread\nSoup | 3.10",
            "Canteen > Prices: Cards only\nNo tips",
        ]
    );
}

#[test]
fn markdown_gives_headings_items_and_tables() {
    let text = "---\na: b\n---\n# Runbook\n\n## Restart\n\n1. Drain *it*.\n2. Run `x`.\n\n| Host | Role |\n|---|---|\n| heron | primary |\n";
    let document = read("a.md", text.as_bytes()).expect("readable");
    let shown: Vec<String> = cut(&document).iter().map(|p| format!("{}: {}", p.citation(), p.text)).collect();
    assert_eq!(shown, ["Runbook > Restart: Drain it.\nRun x.", "Runbook > Restart: Host | Role\nheron | primary"]);
}

#[test]
fn every_passage_of_a_long_table_begins_with_its_head() {
    let mut text = "Name;Room\n".to_owned();
    for number in 0..200 {
        text.push_str(&format!("Person {number};R{number}\n"));
    }
    let passages = cut(&read("a.csv", text.as_bytes()).expect("readable"));
    assert!(passages.len() > 5);
    let mut next = 2;
    for passage in &passages {
        assert!(passage.text.starts_with("Name | Room\nPerson "), "{}", passage.text);
        let (first, last) = passage.rows.expect("rows are numbered");
        assert_eq!(first, next);
        assert_eq!(passage.text.lines().count() as u32, last - first + 2);
        next = last + 1;
    }
    assert_eq!(next, 202);
}

#[test]
fn hostile_files_end_in_clear_errors() {
    assert_eq!(sample("locked.pdf"), Err(DocumentError::Locked));
    assert!(matches!(sample("broken.xlsx"), Err(DocumentError::Damaged { kind: "xlsx", .. })));
    // The cross references are gone; whatever can still be found may be given, and nothing may panic.
    let _ = sample("broken.pdf");
    let nested = sample("nested.docx");
    assert!(matches!(nested, Err(DocumentError::TooLarge { what: "elements inside each other", .. })), "{nested:?}");
    let ole = [OLE_MAGIC, &[0; 600]].concat();
    assert_eq!(read("a.xlsx", &ole), Err(DocumentError::OldOffice));
    assert_eq!(read("a.exe", b"MZ"), Err(DocumentError::UnknownKind { name: "a.exe".into() }));
    assert_eq!(read("noname", b"x"), Err(DocumentError::UnknownKind { name: "noname".into() }));
    assert_eq!(read("a.txt", b" \n\t\n"), Err(DocumentError::NoText { kind: "txt" }));
    assert!(matches!(read("a.txt", b"\x89PNG\0\0"), Err(DocumentError::Damaged { kind: "txt", .. })));
    assert!(matches!(read("a.pdf", b"hello"), Err(DocumentError::Damaged { kind: "pdf", .. })));
    assert!(matches!(read("a.txt", &vec![b'a'; DOCUMENT_BYTES_MAX + 1]), Err(DocumentError::TooLarge { .. })));
}

#[test]
fn what_unpacks_beyond_the_bound_is_refused_before_it_is_held() {
    use std::io::Write as _;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    zip.start_file("word/document.xml", options).expect("started");
    for _ in 0..260 {
        zip.write_all(&vec![b' '; 1 << 20]).expect("written");
    }
    let bytes = zip.finish().expect("finished").into_inner();
    assert!(bytes.len() < 1 << 20);
    let read = read("bomb.docx", &bytes);
    assert!(matches!(read, Err(DocumentError::TooLarge { what: "bytes when unpacked", .. })), "{read:?}");
}

/// Blocks as readers make them: text is never empty.
fn blocks() -> impl Strategy<Value = Vec<Block>> {
    let text = "[a-zé字。. ]{0,120}[a-z]";
    let block = prop_oneof![
        (1..200u32).prop_map(|page| Block::Place(Place::Page(page))),
        (1..20u32).prop_map(|slide| Block::Place(Place::Slide(slide))),
        (1..7usize, "[a-z ]{0,40}[a-z]").prop_map(|(level, text)| Block::Heading(level, text)),
        text.prop_map(Block::Text),
        text.prop_map(Block::Head),
        (text, 0..50u32).prop_map(|(text, row)| Block::Row(text, row)),
    ];
    proptest::collection::vec(block, 0..40)
}

/// One token a letter: hard to fit, and a piece of a word has tokens of its own.
fn letters(text: &str) -> usize {
    text.chars().filter(|c| !c.is_whitespace()).count()
}

proptest! {
    #[test]
    fn passages_fit_and_lose_nothing(blocks in blocks(), room in 16..80usize) {
        let cut = passages(&blocks, room, &letters);
        for passage in &cut {
            let (title, _) = super::chunk::title_of(&passage.headings, room, &letters);
            prop_assert!(letters(&passage.text) + letters(&title) <= room, "{passage:?}");
            prop_assert!(!passage.text.trim().is_empty());
        }
        // Every letter of every text and row is there, in order; heads of tables may come more often.
        let mut seen = cut.iter().flat_map(|passage| passage.text.chars()).filter(|c| !c.is_whitespace());
        for block in &blocks {
            if let Block::Text(text) | Block::Row(text, _) = block {
                for letter in text.chars().filter(|c| !c.is_whitespace()) {
                    prop_assert!(seen.any(|found| found == letter), "{letter} of {text:?} is lost");
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_a_reader_of_ours_panic(
        kind in 0..9usize,
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        magic in 0..4usize,
    ) {
        let bytes = [[&b""[..], ZIP_MAGIC, PDF_MAGIC, OLE_MAGIC][magic], &bytes].concat();
        let _ = read(&format!("a.{}", Kind::ALL[kind].as_str()), &bytes);
    }

    #[test]
    fn no_markup_makes_a_reader_of_ours_panic(
        kind in prop_oneof![Just("md"), Just("html"), Just("csv"), Just("eml"), Just("txt")],
        text in "([<>/=\"'&;|#\\-*`,\n\r ]|table|tr|td|th|h1|p|script|title|From: |a|é|字){0,80}",
    ) {
        if let Ok(document) = read(&format!("a.{kind}"), text.as_bytes()) {
            let _ = passages(&document.blocks, 32, &words);
        }
    }

    #[test]
    fn a_changed_office_file_never_makes_a_reader_panic(
        name in prop_oneof![Just("travel.docx"), Just("prices.xlsx"), Just("plan.pptx")],
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let path = Path::new("../tests/data/documents").join(name);
        let mut bytes = std::fs::read(path).expect("the sample is there");
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let _ = read(name, &bytes);
    }
}

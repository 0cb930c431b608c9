//! Every bound of the protocol layer in one place, each with its reason.
//!
//! A limit that refuses input is checked before memory is reserved for that input.

/// Longest request line and headers together. Larger heads only appear in attacks or with runaway cookies.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most header fields of one request.
pub const HEADERS_MAX: usize = 100;
/// Longest request target (path and query).
pub const URI_BYTES_MAX: usize = 8 * 1024;
/// Longest request body of the JSON API: a full context window of text with room for JSON escapes.
pub const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest webhook body of a messenger; platforms send a few KiB.
pub const WEBHOOK_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Longest webhook body at all: mail comes with attachments, repository events with diffs.
pub const HOOK_BODY_BYTES_MAX: usize = 25 * 1024 * 1024;
/// Bodies beyond [`WEBHOOK_BODY_BYTES_MAX`] that one shard takes in at the same time: each holds up to 25 MiB
/// before anybody knows whether it is authentic.
pub const LARGE_BODIES_MAX: usize = 4;
/// Hex digits in a chunk-size line. Sixteen digits hold every `u64`.
pub const CHUNK_SIZE_DIGITS_MAX: usize = 16;
/// Longest chunk-size line with its extensions.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Longest trailer section after the last chunk; trailers are read and dropped.
pub const TRAILER_BYTES_MAX: usize = 4 * 1024;

/// Payload bound of every WebSocket control frame (RFC 6455 section 5.5).
pub const WS_CONTROL_BYTES_MAX: usize = 125;
/// Longest WebSocket message, fragments together.
pub const WS_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Longest first frame of `millrace/1`: a token and a name.
pub const NATIVE_HELLO_BYTES_MAX: usize = 10 * 1024;
/// Longest request frame of `millrace/1`: what the JSON API takes as well.
pub const NATIVE_REQUEST_BYTES_MAX: usize = BODY_BYTES_MAX;
/// Longest answer frame of `millrace/1`: the vectors of a full embedding request, 256 of 4,096 components, and
/// the names around them.
pub const NATIVE_ANSWER_BYTES_MAX: usize = 256 * 4_096 * 4 + 64 * 1024;

/// Messages in one chat request.
pub const CHAT_MESSAGES_MAX: usize = 2_048;
/// Answers to one request (`n`): half of the sequences that the engine computes together by default, so that one
/// request cannot fill it.
pub const ANSWERS_MAX: i64 = 32;
/// Upper end of `max_tokens`; the model's context window is the tighter bound in practice.
pub const MAX_TOKENS_MAX: i64 = 1_000_000;
/// Stop strings of one request.
pub const STOP_STRINGS_MAX: usize = 16;
/// Bytes of one stop string.
pub const STOP_STRING_BYTES_MAX: usize = 256;
/// Alternatives that may be asked for at each token.
pub const TOP_LOGPROBS_MAX: i64 = 20;
/// Upper end of `top_k`; larger than any vocabulary in use.
pub const TOP_K_MAX: i64 = 1_000_000;
/// Inputs of one embedding request.
pub const EMBEDDING_INPUTS_MAX: usize = 256;
/// Bytes of one embedding input; the encoder itself reads far fewer tokens than this.
pub const EMBEDDING_INPUT_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a session, user, account or key label name.
pub const NAME_BYTES_MAX: usize = 256;

/// Longest token of any kind in `Authorization: Bearer`; a JWT with many claims has 2 KiB.
pub const BEARER_BYTES_MAX: usize = 8 * 1024;
/// Longest form of an OAuth endpoint: a token, a secret and a few names.
pub const OAUTH_FORM_BYTES_MAX: usize = 16 * 1024;
/// Parameters of such a form.
pub const OAUTH_PARAMETERS_MAX: usize = 32;
/// Longest scope parameter.
pub const OAUTH_SCOPE_BYTES_MAX: usize = 1024;
/// Longest key set of another issuer.
pub const JWKS_BYTES_MAX: usize = 256 * 1024;
/// Keys of such a set that are looked at; issuers publish two to ten.
pub const JWKS_KEYS_MAX: usize = 64;
/// Members of a token's audience.
pub const JWT_AUDIENCES_MAX: usize = 32;

/// Text of one inbound channel message; longer text is refused, never cut.
pub const CHANNEL_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Clock difference that a signed webhook may show, both ways.
pub const WEBHOOK_SKEW_S: u64 = 300;
/// Signatures that one webhook header may list.
pub const WEBHOOK_SIGNATURES_MAX: usize = 16;
/// Bytes of a delivery id (dedup key).
pub const EVENT_KEY_BYTES_MAX: usize = 256;
/// How long a dedup key is remembered: longer than any platform retries, and what the product promises.
pub const DEDUP_TTL_MS: u64 = 72 * 3_600 * 1_000;

/// Longest file that is taken into a corpus. A book of 500 pages has a few MiB.
pub const DOCUMENT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What the parts of an office file may take when unpacked: far beyond text, well below what hurts.
pub const DOCUMENT_UNPACKED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Parts of an office file.
pub const DOCUMENT_PARTS_MAX: usize = 10_000;
/// Text of one document, all blocks together: ten books.
pub const DOCUMENT_TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Headings, paragraphs and rows of one document.
pub const DOCUMENT_BLOCKS_MAX: usize = 500_000;
/// Pages of a PDF, slides of a presentation, sheets of a workbook.
pub const DOCUMENT_PAGES_MAX: usize = 5_000;
/// Cells of a table's row.
pub const DOCUMENT_CELLS_MAX: usize = 1_024;
/// Elements inside each other in an office file or web page.
pub const DOCUMENT_NESTING_MAX: usize = 256;
/// Mails inside each other.
pub const DOCUMENT_MAIL_DEPTH_MAX: usize = 3;
/// Attachments of a mail that are read.
pub const DOCUMENT_ATTACHMENTS_MAX: usize = 64;
/// Bytes of a heading; a longer one is a paragraph in a large font.
pub const HEADING_BYTES_MAX: usize = 200;
/// Headings above each other.
pub const HEADINGS_MAX: usize = 9;

/// Virtual shards: fixed, so that stored keys do not depend on the number of cores.
pub const VIRTUAL_SHARDS: u16 = 256;
/// Steps of a retry policy.
pub const RETRY_STEPS_MAX: usize = 32;
/// Longest single pause of a retry policy.
pub const RETRY_DELAY_S_MAX: u64 = 7 * 24 * 3_600;

const _: () = assert!(URI_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(BEARER_BYTES_MAX < OAUTH_FORM_BYTES_MAX && BEARER_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(HEAD_BYTES_MAX <= u16::MAX as usize, "head offsets are kept as u16");
const _: () = assert!(CHUNK_SIZE_DIGITS_MAX < CHUNK_LINE_BYTES_MAX);
const _: () = assert!(WEBHOOK_BODY_BYTES_MAX <= BODY_BYTES_MAX);
const _: () = assert!((DOCUMENT_BYTES_MAX as u64) < DOCUMENT_UNPACKED_BYTES_MAX);
const _: () = assert!(WEBHOOK_BODY_BYTES_MAX <= BODY_BYTES_MAX && WEBHOOK_BODY_BYTES_MAX < HOOK_BODY_BYTES_MAX);
const _: () = assert!(VIRTUAL_SHARDS.is_power_of_two());

//! `/v1/admin/corpora`: documents of the caller's tenant.
//!
//! Changes are jobs: the answer names one, and `/v1/admin/corpus-jobs/{id}` says how far it is.

use millrace_proto::api::ApiError;
use millrace_proto::digest::hex;
use millrace_proto::document::Place;
use millrace_storage::{CORPUS_NAME_BYTES_MAX, CorpusHead, CorpusHit, DocumentRecord};
use serde_json::{Value, json};

use super::admin::unreadable;
use super::routes::Segments;
use super::sessions::whole;
use super::{Gateway, Principal, json as to_json, segment};
use crate::corpus::{Full, Job, Phase, Task};
use crate::net::{Request, Response};

/// Documents of one page when the request names no number, and at most.
const DOCUMENTS_PAGE: (u64, u64) = (100, 1_000);
/// Passages of a search when the request names no number, and at most.
const PASSAGES_PAGE: (u64, u64) = (5, 50);

impl Gateway {
    pub(super) fn list_corpora(&self, principal: &Principal) -> Result<Response, ApiError> {
        let corpora = self.shared.store.corpora(principal.tenant).map_err(|error| unreadable(&error))?;
        let data: Vec<Value> = corpora.iter().map(corpus_object).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "data": data}))))
    }

    pub(super) fn list_documents(
        &self,
        principal: &Principal,
        request: &Request<'_>,
        segments: Segments<'_>,
    ) -> Result<Response, ApiError> {
        let corpus = self.known_corpus(principal, segments)?;
        let limit = whole(request.head, "limit", DOCUMENTS_PAGE.0, 1, DOCUMENTS_PAGE.1)? as usize;
        let after = whole(request.head, "after", 0, 0, u64::from(u32::MAX))? as u32;
        let store = &self.shared.store;
        let mut documents =
            store.documents(principal.tenant, &corpus, after, limit + 1).map_err(|error| unreadable(&error))?;
        let has_more = documents.len() > limit;
        documents.truncate(limit);
        let data: Vec<Value> = documents.iter().map(document_object).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "data": data, "has_more": has_more}))))
    }

    pub(super) fn add_document(
        &self,
        principal: &Principal,
        request: &Request<'_>,
        segments: Segments<'_>,
    ) -> Result<Response, ApiError> {
        let corpus = corpus_name(segments)?;
        let name = needed(request, "name", "the name of the document, with its ending")?;
        if request.body.is_empty() {
            return Err(ApiError::bad_request("empty_body", "The body is empty; it must be the document's bytes."));
        }
        let task = Task::Add { name, tags: tags(request), bytes: request.body.to_vec() };
        self.corpus_task(principal, &corpus, task)
    }

    pub(super) fn remove_document(
        &self,
        principal: &Principal,
        request: &Request<'_>,
        segments: Segments<'_>,
    ) -> Result<Response, ApiError> {
        let corpus = self.known_corpus(principal, segments)?;
        let name = needed(request, "name", "the name of the document")?;
        let known = self.shared.store.document(principal.tenant, &corpus, &name).map_err(|error| unreadable(&error))?;
        if known.is_none() {
            let message = format!("The corpus {corpus} has no document {name:?}.");
            return Err(ApiError::not_found(message)
                .with_param("name")
                .with_next_step(format!("GET /v1/admin/corpora/{corpus}/documents lists them.")));
        }
        self.corpus_task(principal, &corpus, Task::RemoveDocument { name })
    }

    pub(super) fn remove_corpus(&self, principal: &Principal, segments: Segments<'_>) -> Result<Response, ApiError> {
        let corpus = self.known_corpus(principal, segments)?;
        self.corpus_task(principal, &corpus, Task::RemoveCorpus)
    }

    pub(super) async fn search_corpus(
        &self,
        principal: &Principal,
        request: &Request<'_>,
        segments: Segments<'_>,
    ) -> Result<Response, ApiError> {
        let corpus = self.known_corpus(principal, segments)?;
        let text = needed(request, "q", "what to search for")?;
        let limit = whole(request.head, "limit", PASSAGES_PAGE.0, 1, PASSAGES_PAGE.1)? as usize;
        let hits = self.bridge.search_corpus(principal, corpus, text, tags(request), limit).await?;
        let data: Vec<Value> = hits.iter().map(hit_object).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "data": data}))))
    }

    pub(super) fn corpus_job(&self, principal: &Principal, segments: Segments<'_>) -> Result<Response, ApiError> {
        let id = segment(segments, 0)?;
        let job = id.parse().ok().and_then(|id| self.shared.corpora.job(id));
        // A job of another tenant is no job.
        let Some(job) = job.filter(|job| job.tenant == principal.tenant) else {
            return Err(ApiError::not_found(format!(
                "There is no corpus job {id:?}; ended ones are kept for a while."
            )));
        };
        Ok(Response::json(200, to_json(&job_object(&id, &job))))
    }

    fn corpus_task(&self, principal: &Principal, corpus: &str, task: Task) -> Result<Response, ApiError> {
        let id = self.shared.corpora.submit(principal.tenant, corpus, task).map_err(|full| match full {
            Full::Jobs | Full::Bytes => ApiError::overloaded(format!("There is no room: {full}."), 5),
            Full::Closed => ApiError::overloaded("This node is shutting down and takes no new work.", 1),
        })?;
        tracing::info!(by = %principal.key_label, corpus, job = id, "a corpus is changed");
        Ok(Response::json(202, to_json(&json!({"job": id.to_string()}))))
    }

    /// The corpus that the address names, which must exist.
    fn known_corpus(&self, principal: &Principal, segments: Segments<'_>) -> Result<String, ApiError> {
        let name = corpus_name(segments)?;
        match self.shared.store.corpus(principal.tenant, &name).map_err(|error| unreadable(&error))? {
            Some(_) => Ok(name),
            None => Err(ApiError::not_found(format!("There is no corpus {name:?}."))
                .with_next_step("GET /v1/admin/corpora lists them; adding a document makes one.")),
        }
    }
}

fn corpus_name(segments: Segments<'_>) -> Result<String, ApiError> {
    let name = segment(segments, 0)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > CORPUS_NAME_BYTES_MAX || !name.chars().all(plain) {
        let message = format!(
            "{name:?} is no name of a corpus; it has 1 to {CORPUS_NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`."
        );
        return Err(ApiError::invalid_param("corpus", message));
    }
    Ok(name)
}

fn needed(request: &Request<'_>, name: &'static str, what: &str) -> Result<String, ApiError> {
    request.head.query_param(name).filter(|text| !text.trim().is_empty()).ok_or_else(|| {
        ApiError::bad_request("missing_parameter", format!("The parameter {name} is missing: {what}.")).with_param(name)
    })
}

/// `tags=a,b`: the store checks their number and length.
fn tags(request: &Request<'_>) -> Vec<String> {
    let text = request.head.query_param("tags").unwrap_or_default();
    let mut tags: Vec<String> =
        text.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

fn corpus_object(corpus: &CorpusHead) -> Value {
    json!({
        "name": corpus.name,
        "documents": corpus.documents,
        "passages": corpus.passages,
        "embedding_model": (!corpus.model.is_empty()).then_some(&corpus.model),
        "created_ms": corpus.created_ms,
    })
}

fn document_object(document: &DocumentRecord) -> Value {
    json!({
        "number": document.number,
        "name": document.name,
        "kind": document.kind,
        "bytes": document.bytes,
        "sha256": hex(&document.hash),
        "tags": document.tags,
        "passages": document.passages,
        "notes": document.notes,
        "added_ms": document.added_ms,
    })
}

fn hit_object(hit: &CorpusHit) -> Value {
    let passage = &hit.passage;
    let (page, slide, sheet) = match &passage.place {
        Some(Place::Page(page)) => (Some(page), None, None),
        Some(Place::Slide(slide)) => (None, Some(slide), None),
        Some(Place::Sheet(sheet)) => (None, None, Some(sheet)),
        None => (None, None, None),
    };
    let mut object = json!({
        "document": hit.document,
        "citation": passage.citation(),
        "headings": passage.headings,
        "text": passage.text,
        "score": hit.score,
        "relevance": hit.relevance,
        "part": hit.part,
    });
    if let Some(page) = page {
        object["page"] = json!(page);
        object["page_last"] = json!(passage.page_last);
    }
    if let Some(slide) = slide {
        object["slide"] = json!(slide);
    }
    if let Some(sheet) = sheet {
        object["sheet"] = json!(sheet);
    }
    if let Some((first, last)) = passage.rows {
        object["rows"] = json!([first, last]);
    }
    object
}

fn job_object(id: &str, job: &Job) -> Value {
    let mut object = json!({"id": id, "corpus": job.corpus, "document": job.document});
    let state = match &job.phase {
        Phase::Waiting => "waiting",
        Phase::Reading => "reading",
        Phase::Storing { done, total } => {
            object["done"] = json!(done);
            object["total"] = json!(total);
            "storing"
        }
        Phase::Added { document, unchanged } => {
            object["result"] = document_object(document);
            object["unchanged"] = json!(unchanged);
            "added"
        }
        Phase::Removed { found } => {
            object["found"] = json!(found);
            "removed"
        }
        Phase::Failed { code, message } => {
            object["error"] = json!({"code": code, "message": message});
            "failed"
        }
    };
    object["state"] = json!(state);
    object
}

//! Pages of lists, and the cursors that lead from one to the next.
//!
//! A cursor is the last row's key and a code over it (HMAC-SHA256, cut to 16 bytes), under a key
//! of the publisher's own. The code also covers the path and every other parameter of the query,
//! so a cursor works for the list that it came from and for no other.

use std::marker::PhantomData;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use poem::{
    IntoResponse, Response,
    http::{HeaderValue, Uri, header},
};
use poem_openapi::{
    ApiResponse,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
    types::{ToJSON, Type},
};
use serde::Serialize;
use sha2::Sha256;
use uuid::Uuid;

use domain::{Code, limits::PAGE_DEFAULT};
use persistence::{Page, PageRequest, Scope};

use crate::shared::{App, common::text_header, page::PageQuery};
use web::http::{ApiError, RequestContext};

/// What the key is derived for.
const PURPOSE: &str = "cursor";
/// Bytes of the code that are kept.
const CODE_BYTES: usize = 16;
/// What a part of a list is counted for until it is known how long it is, so that few of a
/// publisher's are put together at a time.
const RESERVED_BYTES: usize = 4 * 1024 * 1024;

/// The key of a row by which a list is sorted.
pub trait Position: Sized {
    /// As bytes, always as many.
    fn bytes(&self) -> Vec<u8>;
    /// Back from bytes.
    fn of_bytes(bytes: &[u8]) -> Option<Self>;
}

impl Position for Uuid {
    fn bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        Self::from_slice(bytes).ok()
    }
}

impl Position for i64 {
    fn bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

/// A request for a part of a list.
pub struct List {
    key: [u8; 32],
    uri: Uri,
    limit: u64,
    cursor: Option<String>,
}

impl List {
    /// Begins to answer a list; `scope` is whose it is, `None` for the operator's own.
    ///
    /// # Errors
    /// When the store can't be read, or the caller has too many answers to read already.
    pub async fn begin(
        app: &App,
        request: &RequestContext,
        scope: Option<&Scope>,
        page: PageQuery,
    ) -> Result<Self, ApiError> {
        request.reserve_answer(RESERVED_BYTES).await?;
        Ok(Self {
            key: app.store.derived_key(scope, PURPOSE).await?,
            uri: request.uri().clone(),
            limit: page.limit.unwrap_or(PAGE_DEFAULT),
            cursor: page.cursor,
        })
    }

    /// The part that is asked for.
    ///
    /// # Errors
    /// 400 `invalid_cursor`.
    pub fn page<K: Position>(&self) -> Result<PageRequest<K>, ApiError> {
        let after = match &self.cursor {
            None => None,
            Some(cursor) => Some(self.open(cursor).ok_or(Code::InvalidCursor)?),
        };
        Ok(PageRequest {
            limit: self.limit,
            after,
        })
    }

    /// The answer.
    #[must_use]
    pub fn answer<M, T: ToJSON, K: Position>(
        &self,
        page: Page<M, K>,
        show: impl Fn(M) -> T,
    ) -> Listed<T> {
        self.written(page, |row, body| body.push_str(&show(row).to_json_string()))
    }

    /// The answer of rows that hold callers' own JSON: each is written as the text that it is.
    #[must_use]
    pub fn answer_text<M, T: Serialize, K: Position>(
        &self,
        page: Page<M, K>,
        show: impl Fn(M) -> T,
    ) -> Listed<T> {
        self.written(page, |row, body| {
            // Strings, numbers and JSON that parsed are always written.
            body.push_str(&serde_json::to_string(&show(row)).unwrap_or_default());
        })
    }

    /// Row after row, so that of none more is in memory than its row and its text.
    pub(crate) fn written<M, T, K: Position>(
        &self,
        page: Page<M, K>,
        write: impl Fn(M, &mut String),
    ) -> Listed<T> {
        let next = page.next.map(|position| self.seal(&position.bytes()));
        let mut body = String::from(r#"{"items":["#);
        for (at, row) in page.items.into_iter().enumerate() {
            if at > 0 {
                body.push(',');
            }
            write(row, &mut body);
        }
        // A cursor has no character that JSON escapes.
        let last = next
            .as_ref()
            .map_or_else(|| "null".to_owned(), |next| format!("\"{next}\""));
        body.push_str("],\"next_cursor\":");
        body.push_str(&last);
        body.push('}');
        Listed {
            link: next.as_deref().and_then(|cursor| self.link(cursor)),
            body,
            of: PhantomData,
        }
    }

    fn code(&self, position: &[u8]) -> Hmac<Sha256> {
        let mut code =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        let mut part = |bytes: &[u8]| {
            code.update(&(bytes.len() as u64).to_be_bytes());
            code.update(bytes);
        };
        part(self.uri.path().as_bytes());
        for pair in self.filters() {
            part(pair.as_bytes());
        }
        part(position);
        code
    }

    /// The query without what may differ from page to page, in one order.
    fn filters(&self) -> Vec<&str> {
        let pairs = self.uri.query().unwrap_or_default().split('&');
        let mut filters: Vec<&str> = pairs
            .filter(|pair| {
                let name = pair.split('=').next().unwrap_or_default();
                !pair.is_empty() && name != "limit" && name != "cursor"
            })
            .collect();
        filters.sort_unstable();
        filters
    }

    fn seal(&self, position: &[u8]) -> String {
        let mut bytes = position.to_vec();
        let code = self.code(position).finalize().into_bytes();
        bytes.extend_from_slice(&code[..CODE_BYTES]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn open<K: Position>(&self, cursor: &str) -> Option<K> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (position, code) = bytes.split_at_checked(bytes.len().checked_sub(CODE_BYTES)?)?;
        self.code(position).verify_truncated_left(code).ok()?;
        K::of_bytes(position)
    }

    /// `Link: <…>; rel="next"` (RFC 8288): the same request with the next cursor.
    fn link(&self, cursor: &str) -> Option<HeaderValue> {
        let mut query = String::new();
        for pair in self.uri.query().unwrap_or_default().split('&') {
            if !pair.is_empty() && pair.split('=').next() != Some("cursor") {
                query.push_str(pair);
                query.push('&');
            }
        }
        let path = self.uri.path();
        HeaderValue::try_from(format!("<{path}?{query}cursor={cursor}>; rel=\"next\"")).ok()
    }
}

/// A part of a list: `{items, next_cursor}`.
pub struct Listed<T> {
    body: String,
    link: Option<HeaderValue>,
    of: PhantomData<fn() -> T>,
}

impl<T> IntoResponse for Listed<T> {
    fn into_response(self) -> Response {
        let mut response = Response::builder()
            .content_type("application/json")
            .body(self.body);
        if let Some(link) = self.link {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }
}

impl<T: Type> Listed<T> {
    fn name() -> String {
        format!("{}List", T::name())
    }
}

impl<T: Type> ApiResponse for Listed<T> {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: "A page of the list.",
                status: Some(200),
                status_range: None,
                content: vec![MetaMediaType {
                    content_type: "application/json",
                    schema: MetaSchemaRef::Reference(Self::name()),
                }],
                headers: vec![text_header("LINK")],
            }],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
        registry.create_schema::<Self, _>(Self::name(), |_| MetaSchema {
            description: Some("A part of a list."),
            required: vec!["items", "next_cursor"],
            properties: vec![("items", items::<T>()), ("next_cursor", next_cursor())],
            ..MetaSchema::new("object")
        });
    }
}

fn items<T: Type>() -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(MetaSchema {
        description: Some("The rows, in the list's order."),
        items: Some(Box::new(T::schema_ref())),
        ..MetaSchema::new("array")
    }))
}

fn next_cursor() -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(MetaSchema {
        description: Some(
            "Send it as `cursor` for the next part; null on the last one. A part may have fewer rows \
             than asked for, even none, and not be the last: looking for rows that several filters \
             let through ends after a while, and goes on with the next part.",
        ),
        nullable: true,
        ..MetaSchema::new("string")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::page::CURSOR_CHARS;

    fn list(key: u8, uri: &'static str) -> List {
        List {
            key: [key; 32],
            uri: Uri::from_static(uri),
            limit: 50,
            cursor: None,
        }
    }

    #[test]
    fn a_cursor_opens_for_its_list_alone() {
        let position = Uuid::from_u128(7);
        let cursor = list(1, "/v1/runs?status=queued&limit=10").seal(&position.bytes());
        assert!(cursor.len() <= CURSOR_CHARS);
        let open = |key, uri| list(key, uri).open::<Uuid>(&cursor);
        assert_eq!(open(1, "/v1/runs?limit=200&status=queued"), Some(position));
        assert_eq!(open(1, "/v1/runs?cursor=x&status=queued"), Some(position));
        assert_eq!(
            open(2, "/v1/runs?status=queued"),
            None,
            "another publisher's"
        );
        assert_eq!(open(1, "/v1/runs?status=failed"), None);
        assert_eq!(open(1, "/v1/runs"), None);
        assert_eq!(open(1, "/v1/events?status=queued"), None);
        assert_eq!(list(1, "/v1/runs?status=queued").open::<i64>(&cursor), None);
    }

    #[test]
    fn an_edited_cursor_does_not_open() {
        let list = list(1, "/v1/runs");
        let cursor = list.seal(&7_i64.to_be_bytes());
        let mut bytes = URL_SAFE_NO_PAD.decode(&cursor).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(list.open::<i64>(&URL_SAFE_NO_PAD.encode(&bytes)), None);
            bytes[at] ^= 1;
        }
        for odd in ["", "=", "AAAA", &format!("{cursor}A"), &cursor[1..]] {
            assert_eq!(list.open::<i64>(odd), None, "{odd}");
        }
        assert_eq!(list.open::<i64>(&cursor), Some(7));
    }

    #[test]
    fn the_link_keeps_the_other_parameters() {
        let link = list(1, "/v1/runs?status=queued&cursor=old&limit=2")
            .link("new")
            .unwrap();
        assert_eq!(
            link,
            "</v1/runs?status=queued&limit=2&cursor=new>; rel=\"next\""
        );
    }
}

//! Pages for people, from the binary alone: a console over the contract, the list of problems, and
//! the document itself. Nothing is loaded from elsewhere, and the browser is told to see to that.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use poem::{
    Endpoint, IntoEndpoint, IntoResponse, PathPattern, Request, Response, Result,
    error::MethodNotAllowedError,
    http::{HeaderValue, Method, StatusCode, header},
};
use poem_openapi::OpenApiService;

use domain::Code;

use crate::contract::Contract;

/// Scripts and styles from here only. Swagger UI sets style attributes, hence the exception.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

const CONSOLE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Stationmaster API</title>
<link rel="stylesheet" href="/docs/console.css">
</head>
<body>
<div id="ui"></div>
<noscript><p>The console needs JavaScript. The document is at <a href="/openapi.json">/openapi.json</a>,
the problems at <a href="/docs/problems">/docs/problems</a>.</p></noscript>
<script src="/docs/console.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"#;

/// No validator badge: it would send the document's address to somebody else's server.
const START: &str = "SwaggerUIBundle({\n  url: \"/openapi.json\",\n  dom_id: \"#ui\",\n  \
    deepLinking: true,\n  validatorUrl: null,\n  persistAuthorization: false,\n});\n";

/// An application with the pages in front of it: paths that are no page's go to `app`.
pub struct WithDocs<E> {
    app: E,
    pages: Arc<[Page]>,
}

struct Page {
    path: &'static str,
    content_type: &'static str,
    content: Bytes,
    etag: HeaderValue,
}

/// Puts the pages in front of `app`.
pub fn attach<E: IntoEndpoint>(app: E, contract: &Contract) -> WithDocs<E::Endpoint> {
    let (script, style) = swagger_ui();
    let html = "text/html; charset=utf-8";
    let javascript = "text/javascript; charset=utf-8";
    let pages = vec![
        Page::new("/docs", html, CONSOLE.into()),
        Page::new("/docs/console.js", javascript, script.into()),
        Page::new("/docs/console.css", "text/css; charset=utf-8", style.into()),
        Page::new("/docs/start.js", javascript, START.into()),
        Page::new("/docs/problems", html, problems_page().into()),
        Page::new(
            "/openapi.json",
            "application/json",
            contract.text().to_owned().into(),
        ),
    ];
    WithDocs {
        app: app.into_endpoint(),
        pages: pages.into(),
    }
}

/// Script and style of Swagger UI, taken out of the one big page that poem-openapi makes: inline
/// they would need a policy that allows any inline script.
fn swagger_ui() -> (String, String) {
    let page = OpenApiService::new((), "", "").swagger_ui_html();
    let between = |open: &str, close: &str| {
        let inner = page
            .split_once(open)
            .and_then(|(_, rest)| rest.split_once(close));
        inner.map(|(inner, _)| inner.to_owned()).unwrap_or_default()
    };
    (
        between("<script charset=\"UTF-8\">", "</script>"),
        between("<style charset=\"UTF-8\">", "</style>"),
    )
}

impl Page {
    fn new(path: &'static str, content_type: &'static str, content: Bytes) -> Self {
        let etag = HeaderValue::try_from(format!("\"{:08x}\"", crc32fast::hash(&content)))
            .unwrap_or(HeaderValue::from_static("\"0\""));
        Self {
            path,
            content_type,
            content,
            etag,
        }
    }

    fn answer(&self, request: &Request) -> Response {
        let known = request
            .headers()
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|tag| tag.trim().trim_start_matches("W/").as_bytes() == self.etag.as_bytes());
        let mut response = if known {
            Response::builder()
                .status(StatusCode::NOT_MODIFIED)
                .finish()
        } else {
            Response::builder()
                .content_type(self.content_type)
                .body(self.content.clone())
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(POLICY),
        );
        headers.insert(
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        );
        response
    }
}

impl<E: Endpoint> Endpoint for WithDocs<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let path = request.uri().path();
        // The API pays one comparison.
        let ours = !path.starts_with("/v1/");
        let page = ours
            .then(|| self.pages.iter().find(|page| page.path == path))
            .flatten();
        let Some(page) = page else {
            return self
                .app
                .call(request)
                .await
                .map(IntoResponse::into_response);
        };
        let pattern = PathPattern(page.path.into());
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut error = poem::Error::from(MethodNotAllowedError);
            error.set_data(pattern);
            return Err(error);
        }
        let mut response = page.answer(&request);
        response.set_data(pattern);
        Ok(response)
    }
}

fn problems_page() -> String {
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Problems</title>\n<style>\n\
         body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }\n\
         section:target { background: #fff7d6; }\n\
         section { border-top: 1px solid #ddd; padding: .5rem; }\n\
         h2 { font-size: 1.05rem; margin: .25rem 0; }\n\
         p { margin: .25rem 0; }\n</style>\n</head>\n<body>\n<h1>Problems</h1>\n\
         <p>Whatever goes wrong is answered as <code>application/problem+json</code> (RFC 9457). \
         Programs branch on <code>code</code>; this is the whole list. Each operation's own are in \
         the <a href=\"/docs\">reference</a>. Quote <code>request_id</code> when asking the operator.</p>\n",
    );
    for code in Code::ALL {
        let _ = writeln!(
            page,
            "<section id=\"{code}\"><h2><a href=\"#{code}\"><code>{code}</code></a> · {}</h2>\
             <p>{}.</p><p>{}</p></section>",
            code.status(),
            marked_up(code.title()),
            marked_up(code.help()),
        );
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Escaped, with `code` marks as elements.
fn marked_up(text: &str) -> String {
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let mut parts = escaped.split('`');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        out.push_str(if index % 2 == 0 { "<code>" } else { "</code>" });
        out.push_str(part);
    }
    out
}

#[cfg(test)]
mod tests;

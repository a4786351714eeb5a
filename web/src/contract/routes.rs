//! The document's paths, found by the pattern that the router reports.

use std::collections::HashMap;

use poem::http::{HeaderValue, Method};
use serde_json::Value;

use super::{describe, schema::resolve};

const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "patch", "trace"];

/// Every path of the document.
#[derive(Debug, Default)]
pub struct Routes(HashMap<String, Route>);

/// One path with its operations.
#[derive(Debug)]
pub struct Route {
    index: usize,
    path: String,
    allow: HeaderValue,
    parameters: HashMap<String, Vec<Parameter>>,
}

/// A parameter of one operation.
#[derive(Debug)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub location: Location,
    /// What it takes, such as "an integer from 1 to 200".
    pub takes: String,
}

/// Where a parameter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// In the path.
    Path,
    /// In the query string.
    Query,
    /// In a header.
    Header,
    /// In a cookie.
    Cookie,
}

impl Location {
    /// The document's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
            Self::Cookie => "cookie",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Path, Self::Query, Self::Header, Self::Cookie]
            .into_iter()
            .find(|location| location.as_str() == word)
    }
}

impl Routes {
    /// The routes of a document.
    #[must_use]
    pub fn of(document: &Value) -> Self {
        let paths = document["paths"].as_object().into_iter().flatten();
        let routes = paths
            .enumerate()
            .map(|(index, (path, item))| (pattern(path), Route::new(index, path, item, document)));
        Self(routes.collect())
    }

    /// The route that a router's pattern means.
    #[must_use]
    pub fn get(&self, pattern: &str) -> Option<&Route> {
        self.0.get(pattern)
    }

    /// How many there are; their indices lie below.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Route {
    fn new(index: usize, path: &str, item: &Value, document: &Value) -> Self {
        let operations = METHODS
            .iter()
            .filter_map(|method| Some((*method, item.get(*method)?)));
        let mut allowed = Vec::new();
        let mut parameters = HashMap::new();
        for (method, operation) in operations {
            let method = method.to_ascii_uppercase();
            parameters.insert(method.clone(), parameters_of(operation, document));
            if method == "GET" {
                allowed.push("HEAD".to_owned());
            }
            allowed.push(method);
        }
        allowed.sort();
        let allow =
            HeaderValue::try_from(allowed.join(", ")).unwrap_or(HeaderValue::from_static(""));
        Self {
            index,
            path: path.to_owned(),
            allow,
            parameters,
        }
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The path as the document writes it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its methods, for `Allow`.
    #[must_use]
    pub fn allow(&self) -> HeaderValue {
        self.allow.clone()
    }

    /// The names of the query parameters that the operation with `method` takes. `None` when there is
    /// no such operation.
    #[must_use]
    pub fn query(&self, method: &Method) -> Option<Vec<&str>> {
        let parameters = self.parameters_of(method)?.iter();
        let query = parameters.filter(|parameter| parameter.location == Location::Query);
        Some(query.map(|parameter| parameter.name.as_str()).collect())
    }

    /// A parameter of the operation with `method`.
    #[must_use]
    pub fn parameter(&self, method: &Method, name: &str) -> Option<&Parameter> {
        self.parameters_of(method)?
            .iter()
            .find(|parameter| parameter.name == name)
    }

    /// HEAD takes what GET takes, where it is no operation of its own.
    fn parameters_of(&self, method: &Method) -> Option<&[Parameter]> {
        let own = self.parameters.get(method.as_str());
        let parameters = match method {
            &Method::HEAD => own.or_else(|| self.parameters.get("GET")),
            _ => own,
        };
        parameters.map(Vec::as_slice)
    }
}

fn parameters_of(operation: &Value, document: &Value) -> Vec<Parameter> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters
        .filter_map(|parameter| {
            Some(Parameter {
                name: parameter["name"].as_str()?.to_owned(),
                location: Location::parse(parameter["in"].as_str()?)?,
                takes: describe::schema(resolve(&parameter["schema"], document)),
            })
        })
        .collect()
}

/// poem-openapi numbers the variables of a path: `/a/{x}/b/{y}` is routed as `/a/:param0/b/:param1`.
fn pattern(path: &str) -> String {
    let mut variables = 0;
    let segments = path.split('/').map(|segment| {
        if segment.starts_with('{') && segment.ends_with('}') {
            variables += 1;
            format!(":param{}", variables - 1)
        } else {
            segment.to_owned()
        }
    });
    segments.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_route_is_found_by_the_routers_pattern() {
        let document = json!({"paths": {
            "/v1/a/{kind}/b/{id}": {
                "get": {"parameters": [{"name": "limit", "in": "query",
                    "schema": {"type": "integer", "minimum": 1, "maximum": 200}}]},
                "delete": {},
            },
        }});
        let routes = Routes::of(&document);
        let route = routes.get("/v1/a/:param0/b/:param1").unwrap();
        assert_eq!(route.path(), "/v1/a/{kind}/b/{id}");
        assert_eq!(route.allow(), "DELETE, GET, HEAD");
        let limit = route.parameter(&Method::GET, "limit").unwrap();
        assert_eq!(
            (limit.location, limit.takes.as_str()),
            (Location::Query, "an integer from 1 to 200")
        );
        assert!(route.parameter(&Method::HEAD, "limit").is_some());
        assert!(route.parameter(&Method::DELETE, "limit").is_none());
        let query = |method| route.query(&method);
        assert_eq!(query(Method::HEAD), Some(vec!["limit"]));
        assert_eq!(query(Method::DELETE), Some(Vec::new()));
        assert_eq!(query(Method::POST), None);
        assert!(routes.get("/v1/a").is_none());
    }
}

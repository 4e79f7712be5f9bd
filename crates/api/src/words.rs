//! Closed sets of words of the wire, which the OpenAPI document lists.

/// A closed set of words, as `model::words!` has it, with its schema.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $($rest:tt)+) => {
        model::words!(
            $(#[$doc])*
            #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
            $name, $($rest)+
        );
    };
}

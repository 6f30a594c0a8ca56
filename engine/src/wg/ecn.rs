//! Explicit congestion notification through the tunnel (RFC 6040).

/// The two bits.
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The inner packet's ECN field after decapsulation (RFC 6040, figure 4), or `None` if it must be dropped: the network
/// says "congested" and the inner sender would not understand, so only a loss can tell it.
pub fn decapsulated(outer: u8, inner: u8) -> Option<u8> {
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040, figure 4, row by row: inner not-ECT, ECT(0), ECT(1), CE against outer not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn c42_decapsulation_table_of_rfc_6040() {
        let columns = [NOT_ECT, ECT_0, ECT_1, CE];
        let rows = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, expected) in rows {
            for (outer, expected) in columns.into_iter().zip(expected) {
                assert_eq!(
                    decapsulated(outer, inner),
                    expected,
                    "outer {outer:02b}, inner {inner:02b}"
                );
            }
        }
    }
}

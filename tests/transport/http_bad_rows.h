/* Requests that must be refused, with the status of the answer. Shared by the parser's test (split
 * at every byte) and the server's (over sockets). The cases follow RFC 9112 sections 2.2, 3, 5, 6,
 * 7 and 11 and RFC 9110 sections 5, 7.2 and 10.1.1. */
#ifndef SLUICE_TESTS_HTTP_BAD_ROWS_H
#define SLUICE_TESTS_HTTP_BAD_ROWS_H

#include <stddef.h>

struct bad_row {
    const char *name;
    int status;
    const char *bytes;
    size_t len;
};

#define H       "Host: a\r\n"
#define POST    "POST / HTTP/1.1\r\n" H
#define CHUNKED POST "Transfer-Encoding: chunked\r\n\r\n"
#define ROW(n, s, b)                                                                               \
    {                                                                                              \
        n, s, b, sizeof(b) - 1                                                                     \
    }

static const struct bad_row bad_rows[] = {
    /* two framings */
    ROW("CL with TE", 400,
        POST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
             "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ROW("TE with CL", 400, POST "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
    ROW("two different CL", 400, POST "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    ROW("two equal CL", 400, POST "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    ROW("CL list", 400, POST "Content-Length: 3, 3\r\n\r\nabc"),
    ROW("CL with sign", 400, POST "Content-Length: +3\r\n\r\nabc"),
    ROW("CL negative", 400, POST "Content-Length: -1\r\n\r\n"),
    ROW("CL empty", 400, POST "Content-Length:\r\n\r\n"),
    ROW("CL hex", 400, POST "Content-Length: 0x3\r\n\r\nabc"),
    ROW("CL with inner space", 400, POST "Content-Length: 3 3\r\n\r\nabc"),
    ROW("CL with underscore", 400, POST "Content-Length: 1_0\r\n\r\n0123456789"),
    ROW("TE list", 400, POST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ROW("TE chunked twice", 400, POST "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ROW("TE repeated", 400,
        POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ROW("TE identity", 400, POST "Transfer-Encoding: identity\r\n\r\n"),
    ROW("TE xchunked", 400, POST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ROW("TE quoted", 400, POST "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    ROW("TE with vertical tab", 400,
        POST "Transfer-Encoding: \x0b"
             "chunked\r\n\r\n0\r\n\r\n"),
    ROW("TE empty", 400, POST "Transfer-Encoding:\r\n\r\n0\r\n\r\n"),
    ROW("TE with parameter", 400, POST "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
    ROW("TE in 1.0", 400, "POST / HTTP/1.0\r\n" H "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    /* lines and fields */
    ROW("bare LF after request line", 400, "GET / HTTP/1.1\nHost: a\r\n\r\n"),
    ROW("bare LF after field", 400, "GET / HTTP/1.1\r\nHost: a\n\r\n"),
    ROW("bare LF at the end", 400, "GET / HTTP/1.1\r\nHost: a\r\n\n"),
    ROW("bare CR in a value", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
    ROW("CR CR LF", 400, "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"),
    ROW("fold", 400, "GET / HTTP/1.1\r\n" H "X: a\r\n b\r\n\r\n"),
    ROW("fold by tab", 400, "GET / HTTP/1.1\r\n" H "X: a\r\n\tb\r\n\r\n"),
    ROW("space before the first field", 400, "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    ROW("space before colon", 400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    ROW("tab before colon", 400, "GET / HTTP/1.1\r\nHost\t: a\r\n\r\n"),
    ROW("CL with space before colon", 400, POST "Content-Length : 3\r\n\r\nabc"),
    ROW("no colon", 400, "GET / HTTP/1.1\r\n" H "Xabc\r\n\r\n"),
    ROW("empty name", 400, "GET / HTTP/1.1\r\n" H ": a\r\n\r\n"),
    ROW("name with a slash", 400, "GET / HTTP/1.1\r\n" H "X/Y: a\r\n\r\n"),
    ROW("name with high byte", 400, "GET / HTTP/1.1\r\n" H "X\xc3\xa9: a\r\n\r\n"),
    ROW("NUL in a value", 400, "GET / HTTP/1.1\r\n" H "X: a\0b\r\n\r\n"),
    ROW("NUL in a name", 400, "GET / HTTP/1.1\r\n" H "X\0Y: a\r\n\r\n"),
    ROW("NUL in the target", 400, "GET /\0 HTTP/1.1\r\n" H "\r\n"),
    ROW("control byte in a value", 400,
        "GET / HTTP/1.1\r\n" H "X: a\x01"
        "b\r\n\r\n"),
    ROW("DEL in a value", 400, "GET / HTTP/1.1\r\n" H "X: a\x7f\r\n\r\n"),
    ROW("two empty lines first", 400, "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ROW("LF first", 400, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    /* Host */
    ROW("no Host", 400, "GET / HTTP/1.1\r\n\r\n"),
    ROW("two Hosts", 400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ROW("two equal Hosts", 400, "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
    ROW("two Hosts in 1.0", 400, "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"),
    ROW("empty Host", 400, "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    ROW("Host list", 400, "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    ROW("Host with a path", 400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    ROW("Host with user", 400, "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    /* request line */
    ROW("HTTP/0.9", 400, "GET /\r\n"),
    ROW("HTTP/0.9 by number", 505, "GET / HTTP/0.9\r\n" H "\r\n"),
    ROW("HTTP/2 preface", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ROW("HTTP/1.2", 505, "GET / HTTP/1.2\r\n" H "\r\n"),
    ROW("HTTP/3.0", 505, "GET / HTTP/3.0\r\n" H "\r\n"),
    ROW("HTTP/1.10", 400, "GET / HTTP/1.10\r\n" H "\r\n"),
    ROW("HTTP/1,1", 400, "GET / HTTP/1,1\r\n" H "\r\n"),
    ROW("http/1.1", 400, "GET / http/1.1\r\n" H "\r\n"),
    ROW("RTSP/1.0", 400, "GET / RTSP/1.0\r\n" H "\r\n"),
    ROW("version with a space", 400, "GET / HTTP/1.1 \r\n" H "\r\n"),
    ROW("two spaces before target", 400, "GET  / HTTP/1.1\r\n" H "\r\n"),
    ROW("two spaces before version", 400, "GET /  HTTP/1.1\r\n" H "\r\n"),
    ROW("tab in the request line", 400, "GET\t/ HTTP/1.1\r\n" H "\r\n"),
    ROW("space first", 400, " GET / HTTP/1.1\r\n" H "\r\n"),
    ROW("method with a bracket", 400, "GE[T / HTTP/1.1\r\n" H "\r\n"),
    ROW("no method", 400, "/ HTTP/1.1\r\n" H "\r\n"),
    ROW("TLS on a plain port", 400, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    /* target */
    ROW("fragment", 400, "GET /a#b HTTP/1.1\r\n" H "\r\n"),
    ROW("no slash", 400, "GET a HTTP/1.1\r\n" H "\r\n"),
    ROW("high byte", 400, "GET /\xc3\xa9 HTTP/1.1\r\n" H "\r\n"),
    ROW("star by GET", 400, "GET * HTTP/1.1\r\n" H "\r\n"),
    ROW("authority form", 400, "CONNECT a:443 HTTP/1.1\r\n" H "\r\n"),
    ROW("absolute form, other Host", 400, "GET http://b/ HTTP/1.1\r\n" H "\r\n"),
    ROW("absolute form with user", 400, "GET http://u@a/ HTTP/1.1\r\n" H "\r\n"),
    ROW("absolute form without host", 400, "GET http:///x HTTP/1.1\r\n" H "\r\n"),
    ROW("other scheme", 400, "GET ftp://a/ HTTP/1.1\r\n" H "\r\n"),
    /* chunks */
    ROW("chunk size with sign", 400, CHUNKED "+3\r\nabc\r\n0\r\n\r\n"),
    ROW("chunk size with 0x", 400, CHUNKED "0x3\r\nabc\r\n0\r\n\r\n"),
    ROW("chunk size empty", 400, CHUNKED "\r\nabc\r\n0\r\n\r\n"),
    ROW("chunk size after space", 400, CHUNKED " 3\r\nabc\r\n0\r\n\r\n"),
    ROW("chunk size before space", 400, CHUNKED "3 \r\nabc\r\n0\r\n\r\n"),
    ROW("chunk size with underscore", 400, CHUNKED "1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    ROW("chunk size, bare LF", 400, CHUNKED "3\nabc\r\n0\r\n\r\n"),
    ROW("chunk size, bare CR", 400, CHUNKED "3\rabc\r\n0\r\n\r\n"),
    ROW("chunk size, bare LF in extension", 400, CHUNKED "3;x\nabc\r\n0\r\n\r\n"),
    ROW("NUL in a chunk extension", 400, CHUNKED "3;\0\r\nabc\r\n0\r\n\r\n"),
    ROW("chunk size of 17 digits", 400, CHUNKED "00000000000000003\r\nabc\r\n0\r\n\r\n"),
    ROW("chunk size 2^64", 400, CHUNKED "10000000000000000\r\nabc\r\n0\r\n\r\n"),
    ROW("chunk longer than its size", 400, CHUNKED "3\r\nabcd\r\n0\r\n\r\n"),
    ROW("chunk ended by LF", 400, CHUNKED "3\r\nabc\n0\r\n\r\n"),
    ROW("folded trailer", 400, CHUNKED "0\r\nX: a\r\n b\r\n\r\n"),
    ROW("NUL in a trailer", 400, CHUNKED "0\r\nX: \0\r\n\r\n"),
    ROW("bare LF after trailer", 400, CHUNKED "0\r\nX: a\n\r\n"),
    ROW("last line by LF", 400, CHUNKED "0\r\n\n"),
    ROW("body after last chunk", 400, CHUNKED "0\r\nabc\r\n\r\n"),
    /* limits and what is not accepted */
    ROW("CL over the limit", 413, POST "Content-Length: 8388609\r\n\r\n"),
    ROW("CL 2^63", 413, POST "Content-Length: 9223372036854775808\r\n\r\n"),
    ROW("chunk over the limit", 413, CHUNKED "800001\r\n"),
    ROW("chunk 2^64-1", 413, CHUNKED "ffffffffffffffff\r\n"),
    ROW("second chunk over the limit", 413, CHUNKED "1\r\na\r\n800000\r\n"),
    ROW("gzip", 415, POST "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"),
    ROW("identity, gzip", 415, POST "Content-Encoding: identity, gzip\r\n\r\n"),
    ROW("unknown Expect", 417, POST "Expect: 200-ok\r\nContent-Length: 3\r\n\r\nabc"),
    ROW("two Expects", 417, POST "Expect: 100-continue\r\nExpect: x\r\nContent-Length: 3\r\n\r\n"),
};
enum { N_BAD_ROWS = sizeof(bad_rows) / sizeof(bad_rows[0]) };

#endif

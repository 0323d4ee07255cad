#ifndef ROPEVIT_API_H
#define ROPEVIT_API_H

/* What the library exports; all else is hidden. */
#define ROPEVIT_API __attribute__((visibility("default")))

#endif

/* Whether the installed library has what shim.c calls: bursts of jobs came with 1.3. */
#include <intel-ipsec-mb.h>
#if IMB_VERSION_NUM < IMB_VERSION(1, 3, 0)
#error "too old"
#endif

// SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only
/*
 * map_load: a guest's driver that maps a page for a device and takes the mapping back, again and again.
 *
 *   insmod map_load.ko device=0000:00:03.0
 *   echo 10000 >/sys/module/map_load/parameters/pairs       returns when 10000 pairs are done
 *
 * The device is left alone: nothing is told of the addresses. Whoever writes the number has the time, and
 * the pairs are all that lies between (lab/io-load, `io-load map`).
 */
#include <linux/dma-mapping.h>
#include <linux/gfp.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/pci.h>
#include <linux/sched.h>

static char *device = "";
module_param(device, charp, 0444);
MODULE_PARM_DESC(device, "the PCI function, as domain:bus:slot.function");

static int work(struct device *dev, struct page *page, unsigned long pairs)
{
	while (pairs--) {
		dma_addr_t at = dma_map_page(dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);

		if (dma_mapping_error(dev, at))
			return -ENOSPC;
		dma_unmap_page(dev, at, PAGE_SIZE, DMA_BIDIRECTIONAL);
		cond_resched();
	}
	return 0;
}

static int set_pairs(const char *text, const struct kernel_param *parameter)
{
	unsigned int domain, bus, slot, function;
	unsigned long pairs;
	struct pci_dev *pci;
	struct page *page;
	int error = kstrtoul(text, 0, &pairs);

	if (error)
		return error;
	if (sscanf(device, "%x:%x:%x.%x", &domain, &bus, &slot, &function) != 4)
		return -EINVAL;
	pci = pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, function));
	if (!pci)
		return -ENODEV;
	page = alloc_page(GFP_KERNEL);
	error = page ? work(&pci->dev, page, pairs) : -ENOMEM;
	if (page)
		__free_page(page);
	pci_dev_put(pci);
	return error;
}

static const struct kernel_param_ops pairs_ops = { .set = set_pairs };
module_param_cb(pairs, &pairs_ops, NULL, 0200);
MODULE_PARM_DESC(pairs, "maps a page and takes it back as often as this says");

MODULE_DESCRIPTION("maps and unmaps, to be measured");
MODULE_LICENSE("Dual BSD/GPL");
